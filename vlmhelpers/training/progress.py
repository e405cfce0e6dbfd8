"""What a run says of itself in its folder while it lasts, and the wish to stop that it finds there.

process.json: who trains there and, once that is over, how it ended. progress.jsonl: a JSON object a line, what was
logged and what happened. samples.json: the rows that it answers while it is trained. stop: present where the run is to
save a checkpoint and end.
"""

import json
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from vlmhelpers.common.distributed import on_main
from vlmhelpers.common.files import CLOCK_SECONDS, find_process, machine_id
from vlmhelpers.common.printable import one_line

PROCESS, PROGRESS, STOP, SAMPLES = "process.json", "progress.jsonl", "stop", "samples.json"
_SIZE = 4096  # bytes of process.json, whatever it says: a full disk, too, lets them be written over
_LONGEST = 500  # characters of an error


class Stopped(Exception):
    """A run has saved a checkpoint and ended before its last step, as it was asked to."""


def describe_process(pid: int, **more: object) -> dict:
    """What `is_running` knows a process by, with `more`."""
    return {"pid": pid, "created": psutil.Process(pid).create_time(), "machine": machine_id()} | more


def is_running(process: dict) -> bool:
    """Whether a process that `describe_process` described is there still; one of another machine counts as not."""
    if process["machine"] != machine_id():
        return False
    found = find_process(process["pid"])
    return found is not None and abs(found.create_time() - process["created"]) < CLOCK_SECONDS


def read_process(folder: str | os.PathLike) -> dict | None:
    """What process.json says; None without one."""
    try:
        return json.loads((Path(folder) / PROCESS).read_bytes())
    except (OSError, ValueError):
        return None


def write_process(folder: str | os.PathLike, process: dict) -> None:
    """Writes process.json in one piece, over what was there."""
    text = json.dumps(process).encode().ljust(_SIZE)
    descriptor = os.open(Path(folder) / PROCESS, os.O_WRONLY | os.O_CREAT | getattr(os, "O_BINARY", 0))
    try:
        os.write(descriptor, text)
        os.ftruncate(descriptor, len(text))
    finally:
        os.close(descriptor)


def say(folder: str | os.PathLike, **entry: object) -> None:
    """Adds a line to progress.jsonl. What a full disk has no room for is left out: the run ends at its checkpoint."""
    entry = {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in entry.items()}
    line = json.dumps({"time": time.time()} | entry)
    with suppress(OSError), open(Path(folder) / PROGRESS, "a+b") as file:
        file.seek(max(file.tell() - 1, 0))
        torn = file.read(1) not in (b"", b"\n")  # by a process that was killed
        file.write(b"\n" * torn + line.encode() + b"\n")


@contextmanager
def reported(folder: Path) -> Iterator[Callable[[], None]]:
    """Around a run: process.json says how it ended: finished, stopped or failed, with the error.

    Gives a function to be called when the run begins to train, which writes this process there. One that is refused, or
    was finished, leaves all as it is, unless `TrainingRun` has started it.
    """
    if os.environ.get("RANK", "0") != "0":
        yield lambda: None
        return
    process = read_process(folder)
    if process is None or process.get("pid") != os.getpid() or process.get("end"):
        process = None

    def begin():
        nonlocal process
        if process is None:
            (folder / STOP).unlink(missing_ok=True)
            process = describe_process(os.getpid(), started=time.time(), own=False)
            write_process(folder, process)

    end, error = "finished", None
    try:
        yield begin
    except (Stopped, KeyboardInterrupt):
        end = "stopped"
        raise
    except BaseException as problem:
        end, error = "failed", one_line(f"{type(problem).__name__}: {problem}")[:_LONGEST]
        raise
    finally:
        if process and (folder / PROCESS).is_file():  # else the folder was removed
            with suppress(OSError):
                write_process(folder, process | {"end": end, "error": error})
                (folder / STOP).unlink(missing_ok=True)


def make_reporter(folder: Path):
    """A callback of a trainer that says what is logged and what happens, and stops it where the folder asks for it.

    A line has step, max_steps, epoch and all that was logged; tokens_per_second, where the trainer counts tokens, the
    time of validations apart; memory, the most bytes of the GPU so far, of the process on a CPU; seconds_left, by the
    pace of this process.
    """
    import torch
    from transformers import TrainerCallback

    class Reporter(TrainerCallback):
        stopped = False

        def on_train_begin(self, args, state, control, **kwargs):
            self.first_step, self.begun, self.evaluating = state.global_step, time.perf_counter(), None
            self.validated = 0.0  # seconds
            # (tokens, seconds) at the last line; what a trainer has counted before a checkpoint is not known.
            self.counted = None if self.first_step else (0, self.begun)
            self._say(state, event="training")

        def on_prediction_step(self, args, state, control, **kwargs):
            if not self.evaluating:
                self.evaluating = time.perf_counter()
                self._say(state, event="evaluating")

        def on_evaluate(self, args, state, control, **kwargs):
            self.validated += time.perf_counter() - (self.evaluating or time.perf_counter())
            self.evaluating = None
            self._say(state, event="training")

        def on_log(self, args, state, control, logs=None, **kwargs):
            if "loss" in (logs or {}) or "eval_loss" in (logs or {}):
                self._say(state, **logs, **self._pace(state, logs))

        def on_save(self, args, state, control, **kwargs):
            self._say(state, event="saved")

        def on_step_end(self, args, state, control, **kwargs):
            control.should_log |= state.global_step >= state.max_steps  # a run of few steps has a loss, too
            if on_main(self._is_to_stop) and state.global_step < state.max_steps:
                self.stopped = control.should_save = control.should_training_stop = True

        def _is_to_stop(self):
            if not (folder / PROCESS).is_file():
                raise FileNotFoundError(f"{folder} was removed while a run trained there: it has ended")
            return (folder / STOP).is_file()

        def _say(self, state, **entry):
            if state.is_world_process_zero:
                at = {"step": state.global_step, "max_steps": state.max_steps, "epoch": state.epoch}
                say(folder, **at | entry)

        def _pace(self, state, logs):
            now = time.perf_counter()
            done = state.global_step - self.first_step
            left = (now - self.begun) / done * (state.max_steps - state.global_step) if done else None
            gpu = torch.cuda.is_available()
            memory = torch.cuda.max_memory_allocated() if gpu else psutil.Process().memory_info().rss
            pace = {"seconds_left": left, "memory": memory}
            if tokens := logs.get("num_tokens"):
                trained = now - self.validated
                if self.counted:
                    pace["tokens_per_second"] = (tokens - self.counted[0]) / (trained - self.counted[1])
                self.counted = tokens, trained
            return pace

    return Reporter()
