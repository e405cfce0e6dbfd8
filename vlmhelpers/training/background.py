"""A run of `train` in a process of its own, which outlives the notebook that started it."""

# Imports nothing heavy: a command has to answer at once.

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import psutil

from vlmhelpers.common.digests import changed_settings
from vlmhelpers.common.files import one_process
from vlmhelpers.training.config import RESULTS, RunConfig
from vlmhelpers.training.progress import (
    PROCESS,
    PROGRESS,
    SAMPLES,
    STOP,
    describe_process,
    is_running,
    read_process,
    write_process,
)

CONFIG, LOG = "run.yaml", "log.txt"
_WORK = ("waiting", "starting", "training", "evaluating")
_OF_KERNELS = ("MPLBACKEND", "JPY_PARENT_PID")  # of the environment: a run belongs to no kernel


class TrainingRun:
    """A run, known by its folder alone: any process can find it, watch it and stop it.

    It is started by `start`, or by `train` in any other way. The folder is the `output_dir` of its settings; ValueError
    for an empty name, which is no folder and would mean the working directory.
    """

    def __init__(self, folder: str | os.PathLike):
        if not os.fspath(folder):
            raise ValueError("an empty name is no run: name the output_dir of one")
        self.folder = Path(folder)
        self._child = None  # an ended one stays a zombie until its parent asks
        self._entries, self._read, self._reading = [], 0, threading.Lock()

    def start(
        self,
        config: RunConfig | None = None,
        accept_changes: bool = False,
        after: Iterable[str | os.PathLike] = (),
        at_once: int = 1,
    ) -> "TrainingRun":
        """Starts the run, or goes on with it from its newest whole checkpoint; waits for those in the folders `after`.

        `at_once`: so many go on together, it and those that it waits for; with 1 it waits for them all.
        `config`: None for the settings that it was started with; it waits again for what it waited for, if that is
        running. What it prints goes to log.txt. Raises BlockingIOError where it is running, FileNotFoundError without
        settings, and ValueError, unless `accept_changes`, where it was begun with other settings.
        """
        file = self.folder / CONFIG
        if config is None and not file.is_file():
            raise FileNotFoundError(f"{file} is not there: start the run with its settings")
        after = [str(TrainingRun(folder).folder.absolute()) for folder in after]
        self.folder.mkdir(parents=True, exist_ok=True)
        with one_process(self.folder / PROCESS, "start"):
            if self.is_running:
                pid = read_process(self.folder)["pid"]
                raise BlockingIOError(f"{self.folder}: process {pid} trains there. Stop it, or choose another folder")
            if config is not None:
                self._choose(config, accept_changes)
            (self.folder / STOP).unlink(missing_ok=True)
            others = [*dict.fromkeys([*after, *self._waited_for(config)])]
            command = [sys.executable, "-m", "vlmhelpers", "train", str(self.folder / CONFIG)]
            command += ["--accept-changes"] * accept_changes
            command += ["--at-once", str(at_once), "--after", *others] if others else []
            environment = {name: value for name, value in os.environ.items() if name not in _OF_KERNELS}
            with open(self.folder / LOG, "ab") as log:
                self._child = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,  # a file, never a pipe: nobody may be there to empty it
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # a kernel's restart ends the kernel's whole process group
                    env=environment | {"PYTHONUNBUFFERED": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                )
            process = describe_process(self._child.pid, started=time.time(), own=True, after=others)
            write_process(self.folder, process)
        return self

    def _waited_for(self, config):
        found = (read_process(self.folder) or {}).get("after", ()) if config is None else ()
        return [folder for folder in found if TrainingRun(folder).is_running]

    def _choose(self, config, accept_changes):
        file, config = self.folder / CONFIG, replace(config, output_dir=str(self.folder)).with_absolute_paths()
        begun = any(self.folder.glob("checkpoint-*")) or (self.folder / RESULTS).is_file()
        if file.is_file() and begun and not accept_changes:
            changed = changed_settings(RunConfig.read(file).deciding, config.deciding)
            if changed := [name for name in changed if name != "output_dir"]:
                remedy = "choose another folder, or accept_changes=True"
                raise ValueError(f"{self.folder} was begun with other settings, {', '.join(changed)}: {remedy}")
        config.save(file)

    def stop(self) -> None:
        """Asks the run to save a checkpoint after its step and to end; `start` goes on from there."""
        if self.is_running:
            (self.folder / STOP).touch()

    def abort(self) -> None:
        """Ends the run and its processes at once; what came after its last checkpoint is lost.

        Raises ValueError for a run in a process that is not its own, such as a notebook's kernel.
        """
        process = read_process(self.folder)
        if not self.is_running:
            return
        if not process["own"]:
            raise ValueError(f"{self.folder}: process {process['pid']} does more than this run: interrupt it there")
        if hasattr(os, "killpg"):
            os.killpg(process["pid"], signal.SIGKILL)  # the whole session
        else:
            os.kill(process["pid"], signal.SIGTERM)
        self.wait(timeout=30)
        if not self.is_running and self.folder.is_dir():  # it could not say so itself
            write_process(self.folder, (read_process(self.folder) or process) | {"end": "stopped"})

    def wait(self, timeout: float | None = None, every: float = 0.2) -> str:
        """The state of the run once it has ended, or after `timeout` seconds."""
        end = time.monotonic() + timeout if timeout is not None else float("inf")
        while self.is_running and time.monotonic() < end:
            time.sleep(every)
        return self.state

    @property
    def is_running(self) -> bool:
        """Whether its process is there and has not ended its work."""
        process = read_process(self.folder)
        if self._child is not None:
            self._child.poll()
        return process is not None and not process.get("end") and is_running(process)

    @property
    def state(self) -> str:
        """new, waiting (for other runs), starting, training, evaluating, stopping; finished, stopped, failed or lost.

        lost: it ended without a word, as a killed process does.
        """
        process, running = read_process(self.folder), self.is_running
        if process is None:
            return "new"
        if not running:
            # Read again: it may have ended between the two looks.
            return (read_process(self.folder) or {}).get("end") or "lost"
        if (self.folder / STOP).exists():
            return "stopping"
        said = [entry for entry in self.entries() if entry["time"] >= process["started"]]
        return next((entry["event"] for entry in reversed(said) if entry.get("event") in _WORK), "starting")

    @property
    def error(self) -> str | None:
        """The error that it failed with, in one sentence; of a lost run, the last line that it printed."""
        process = read_process(self.folder) or {}
        if self.state == "lost":
            return next(iter(self.log_lines(1)), None)
        return process.get("error")

    def entries(self) -> list[dict]:
        """What it has said so far: see `progress.make_reporter`. Reads only what was added since the last call."""
        file = self.folder / PROGRESS
        if not file.is_file():  # nothing yet, or no longer
            self._entries, self._read = [], 0
        with self._reading, suppress(FileNotFoundError), open(file, "rb") as opened:
            if os.fstat(opened.fileno()).st_size < self._read:  # another run's
                self._entries, self._read = [], 0
            opened.seek(self._read)
            for line in opened:
                if not line.endswith(b"\n"):  # half written
                    break
                self._read += len(line)
                with suppress(ValueError):  # torn
                    self._entries.append(json.loads(line))
        return self._entries

    @property
    def last(self) -> dict | None:
        """The newest entry with a loss, at the step that is reached; the seconds left only while it trains still."""
        reached = next((entry for entry in reversed(self.entries()) if "max_steps" in entry), {})
        found = next((entry for entry in reversed(self.entries()) if entry.get("loss") is not None), None)
        if found:
            found = found | {name: reached.get(name) for name in ("step", "max_steps")}
        if found and not (self.is_running and found["time"] >= read_process(self.folder)["started"]):
            found = found | {"seconds_left": None}
        return found

    def history(self, name: str = "loss") -> dict[int, float]:
        """What was logged as `name`, by step; steps that a later start has trained anew count once."""
        found = {}
        for entry in self.entries():
            if entry.get("event") == "training":
                while found and next(reversed(found)) > entry["step"]:
                    found.popitem()
            if entry.get(name) is not None:
                found[entry["step"]] = entry[name]
        return found

    @property
    def samples(self) -> dict:
        """The answers that it gives while it is trained (`sample_answers`): {"rows": [...], "answers": {step: [...]}}.

        A row is {"prompt": str, "expected": str, "images": [data URI, ...]}; each step has an answer for each row.
        """
        rows = []
        with suppress(OSError, ValueError):
            rows = json.loads((self.folder / SAMPLES).read_bytes())
        return {"rows": rows, "answers": self.history("answers")}

    def log_lines(self, number: int = 20) -> list[str]:
        """The last lines that it printed, without what a progress bar has drawn over."""
        try:
            with open(self.folder / LOG, "rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - 200 * number - 4000))
                text = file.read().decode("utf-8", "replace")
        except FileNotFoundError:
            return []
        lines = [line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n")]
        return [line for line in lines if line.strip()][-number:]

    def __repr__(self):
        """Its state in a line, as the command line shows it."""
        line = f"{self.folder}: {self.state}"
        if last := self.last:
            line += f", step {last['step']} of {last['max_steps']}, loss {last['loss']:.4g}"
            if last.get("seconds_left") is not None:
                line += f", {last['seconds_left']:.0f} s left"
        return line + (f": {self.error}" if self.state in ("failed", "lost") and self.error else "")


def wait_for(folders: Iterable[str | os.PathLike], stop: Path, at_once: int = 1) -> bool:
    """Waits until fewer than `at_once` of the runs in the folders go on; False where the file `stop` appears before.

    Not for processes that are younger than this one: of two that are to wait for each other, one begins. Raises
    ValueError for `at_once` below 1, which would be to wait forever.
    """
    if at_once < 1:
        raise ValueError(f"at_once is {at_once}: at least one run trains")
    folders = [TrainingRun(folder).folder for folder in folders]
    waited = [(folder, process) for folder in folders if (process := read_process(folder)) and _is_older(process)]
    while sum(_goes_on(folder, process) for folder, process in waited) >= at_once:
        if stop.exists():
            return False
        time.sleep(1)
    return True


def _is_older(process):
    return process["pid"] != os.getpid() and process["created"] <= psutil.Process().create_time()


def _goes_on(folder, process):
    """Whether the run is still that of the process, which has not ended its work."""
    now = read_process(folder) or {}
    same = all(now.get(name) == process[name] for name in ("pid", "created", "started"))
    return same and not now.get("end") and is_running(process)
