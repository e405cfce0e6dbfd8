"""One run on several processes: what the main one does for all of them."""

import contextlib
import io
import os


def on_main(function):
    """What `function()` gives on the main process, on every process; what it raises there is raised on every one.

    All processes have to call it, once `SFTConfig` or `accelerate.PartialState` has joined them. With one process it
    is a call like any other.
    """
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list

    state = PartialState()
    if state.num_processes == 1:
        return function()
    outcome = [None, None]
    if state.is_main_process:
        try:
            outcome[0] = function()
        except Exception as error:
            outcome[1] = error
    value, error = broadcast_object_list(outcome)
    if error is not None:
        raise error
    return value


def only_main_prints():
    """A context in which only the main process prints; every launcher numbers its processes in RANK."""
    is_main = os.environ.get("RANK", "0") == "0"
    return contextlib.nullcontext() if is_main else contextlib.redirect_stdout(io.StringIO())


def is_sharded():
    """Whether accelerate is to shard the model over the processes (FSDP), which then places its parts itself."""
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
