"""One run on several processes: what the main one does for all of them."""

import contextlib
import io
import os
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

T = TypeVar("T")


def on_main(function: Callable[[], T]) -> T:
    """Calls `function` on the main process, and returns or raises the same on every process; all have to call it."""
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list

    outcome = [None, None]
    if PartialState().is_main_process:
        try:
            outcome[0] = function()
        except Exception as error:
            outcome[1] = error
    value, error = broadcast_object_list(outcome)
    if error is not None:
        raise error
    return value


def process_share() -> tuple[int, int]:
    """(the number of this process from 0, how many there are); the first call joins them."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return 0, 1
    import torch
    from accelerate import PartialState

    # The others may be slower by hours; where one dies, the launcher ends them all.
    state = PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(days=7))
    return state.process_index, state.num_processes


def gather(value: T, processes: int) -> list[T]:
    """The values of all processes, in their order; all have to call it, and wait here for each other."""
    from accelerate.utils import gather_object

    return gather_object([value]) if processes > 1 else [value]


def only_main_prints() -> contextlib.AbstractContextManager:
    """A context in which only the main process prints; every launcher numbers its processes in RANK."""
    is_main = os.environ.get("RANK", "0") == "0"
    return contextlib.nullcontext() if is_main else contextlib.redirect_stdout(io.StringIO())


def is_sharded() -> bool:
    """Whether accelerate is to shard the model over the processes (FSDP), and so places its parts itself."""
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
