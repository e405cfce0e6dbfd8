"""A run in a process of its own: started, watched, stopped, gone on with, killed; the state shown is the true one."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from compare_runs import weights

from vlmhelpers.cli import main
from vlmhelpers.training import background, progress
from vlmhelpers.training.background import TrainingRun, wait_for
from vlmhelpers.training.progress import describe_process, is_running, read_process, say, write_process
from vlmhelpers.training.run import RunResult, train

LONG = {"max_steps": 12, "save_steps": 100}


def wait_until(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.05)


@pytest.fixture
def sleeper():
    """A process that does nothing, of a session of its own."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    yield child
    child.kill()
    child.wait()


def as_run_of(folder, child, **more):
    folder.mkdir(exist_ok=True)
    write_process(folder, describe_process(child.pid, started=time.time(), own=True) | more)
    return TrainingRun(folder)


def test_the_state_is_that_of_the_process_and_of_what_it_said(tmp_path, sleeper):
    assert TrainingRun(tmp_path / "none").state == TrainingRun(tmp_path).state == "new"
    say(tmp_path, event="training", step=3, max_steps=9)  # of an earlier start
    time.sleep(0.01)
    run = as_run_of(tmp_path, sleeper)
    assert run.state == "starting" and run.is_running
    for event in ("waiting", "training", "evaluating", "training"):
        say(tmp_path, event=event, step=0)
        assert run.state == event
    say(tmp_path, event="saved", step=1)
    assert run.state == "training"
    run.stop()
    assert run.state == "stopping"
    sleeper.kill()
    sleeper.wait()
    assert run.state == "lost" and not run.is_running


def test_the_process_is_known_by_its_time_of_creation_and_machine(sleeper):
    process = describe_process(sleeper.pid)
    assert is_running(process)
    assert not is_running(process | {"created": process["created"] - 100})  # its number was given again
    assert not is_running(process | {"machine": "another"})
    sleeper.kill()
    wait_until(lambda: not is_running(process))  # a zombie, as nobody has asked for it


@pytest.mark.parametrize(
    "problem, end, error",
    [
        (None, "finished", None),
        (progress.Stopped("at step 3"), "stopped", None),
        (KeyboardInterrupt(), "stopped", None),
        (ValueError("row 3:\nno image"), "failed", "ValueError: row 3: no image"),
        (ValueError("x" * 9999), "failed", ("ValueError: " + "x" * 9999)[:500]),
    ],
)
def test_how_a_run_ended_is_kept(tmp_path, problem, end, error):
    with pytest.raises(type(problem)) if problem else nullcontext():
        with progress.reported(tmp_path) as begin:
            assert TrainingRun(tmp_path).state == "new"
            begin()
            assert TrainingRun(tmp_path).state == "starting"
            if problem:
                raise problem
    run = TrainingRun(tmp_path)
    assert (run.state, run.error, run.is_running) == (end, error, False)
    assert (tmp_path / "process.json").stat().st_size == 4096


def test_a_run_in_the_process_of_a_notebook_is_not_killed(tmp_path):
    with progress.reported(tmp_path) as begin:
        begin()
        with pytest.raises(ValueError, match="does more than this run"):
            TrainingRun(tmp_path).abort()


def test_a_run_that_is_ended_at_once_was_stopped_and_not_lost(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    write_process(tmp_path, describe_process(child.pid, started=time.time(), own=True))
    run = TrainingRun(tmp_path)
    run._child = child
    assert run.is_running
    run.abort()
    assert (run.state, run.error, child.wait(10)) == ("stopped", None, -signal.SIGKILL)


def test_a_folder_that_was_removed_has_no_history(tmp_path):
    say(tmp_path, step=1, max_steps=6, loss=3.0)
    say(tmp_path, event="saved", step=2, max_steps=6)
    run = TrainingRun(tmp_path)
    assert run.last["step"] == 2 and run.last["loss"] == 3.0 and "step 2 of 6" in str(run)
    (tmp_path / "progress.jsonl").unlink()
    assert run.entries() == [] and run.last is None and str(run) == f"{tmp_path}: new"


def test_lines_that_a_killed_process_has_torn_are_passed_over(tmp_path):
    say(tmp_path, step=1, loss=3.0)
    with open(tmp_path / "progress.jsonl", "a") as file:
        file.write('{"step": 2, "lo')
    run = TrainingRun(tmp_path)
    assert run.history() == {1: 3.0}
    say(tmp_path, step=2, loss=float("nan"))
    say(tmp_path, step=3, loss=1.0)
    assert run.history() == TrainingRun(tmp_path).history() == {1: 3.0, 3: 1.0}


def test_steps_that_are_trained_anew_count_once(tmp_path):
    for entry in ({"event": "training", "step": 0}, {"step": 1, "loss": 3}, {"step": 2, "loss": 2}):
        say(tmp_path, **entry)
    say(tmp_path, event="training", step=1)
    run = TrainingRun(tmp_path)
    assert run.history() == {1: 3}
    say(tmp_path, step=2, loss=1)
    assert run.history() == {1: 3, 2: 1}


def test_a_long_run_is_read_by_several_at_once_and_in_no_time(tmp_path):
    with open(tmp_path / "progress.jsonl", "w") as file:
        for step in range(1, 20_001):
            file.write(f'{{"step": {step}, "loss": 1.0}}\n')
            if step % 10 == 0:
                file.write(f'{{"event": "training", "step": {step}}}\n')
    run = TrainingRun(tmp_path)
    with ThreadPoolExecutor(8) as threads:
        assert {len(entries) for entries in threads.map(lambda _: run.entries(), range(8))} == {22_000}
    begun = time.process_time()
    assert len(run.history()) == 20_000
    assert time.process_time() - begun < 1  # a panel asks each second, for several lines


def test_the_log_shows_the_last_state_of_a_bar(tmp_path):
    (tmp_path / "log.txt").write_bytes("one\n\rtwo 1%\rtwo 100%\r\n\nthrée\n".encode())
    assert TrainingRun(tmp_path).log_lines() == ["one", "two 100%", "thrée"]
    assert TrainingRun(tmp_path).log_lines(1) == ["thrée"] and TrainingRun(tmp_path / "none").log_lines() == []


def test_a_full_disk_loses_lines_and_not_how_the_run_ended(tmp_path):
    resource = pytest.importorskip("resource")
    code = f"""
import resource, signal
from pathlib import Path
from vlmhelpers.training import progress
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
folder = Path({str(tmp_path)!r})
with progress.reported(folder) as begin:
    begin()
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))  # what is there may be written over, nothing grows
    for step in range(200):
        progress.say(folder, step=step, loss=1.0)
    raise OSError(28, "No space left on device")
"""
    assert resource
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    run = TrainingRun(tmp_path)
    assert "No space left" in done.stderr and run.state == "failed" and "No space left" in run.error
    assert 10 < len(run.history()) < 200


def test_of_two_runs_that_wait_for_each_other_the_older_one_begins(tmp_path, sleeper):
    stop = tmp_path / "stop"
    stop.touch()  # so that waiting ends at once
    older, younger = describe_process(os.getppid() or 1), describe_process(sleeper.pid)
    assert older["created"] <= describe_process(os.getpid())["created"] < younger["created"]
    for process, waits in ((older, True), (younger, False), (describe_process(os.getpid()), False)):
        write_process(tmp_path, process | {"started": time.time(), "own": True})
        assert wait_for([tmp_path], stop) != waits


def test_a_run_that_is_started_again_is_no_longer_waited_for(tmp_path, monkeypatch):
    process = describe_process(os.getppid() or 1, started=1, own=True)
    write_process(tmp_path, process)
    looks = []

    def restart(seconds):
        looks.append(seconds)
        write_process(tmp_path, process | {"started": 2})

    monkeypatch.setattr(background.time, "sleep", restart)
    assert wait_for([tmp_path, tmp_path / "none"], tmp_path / "stop") and len(looks) == 1


def test_so_many_runs_go_on_at_once(tmp_path):
    process = describe_process(os.getppid() or 1, started=1, own=True)
    folders, stop = [tmp_path / name for name in "abc"], tmp_path / "stop"
    stop.touch()  # so that waiting ends at once
    for folder in folders:
        folder.mkdir()
        write_process(folder, process)
    assert [wait_for(folders, stop, at_once) for at_once in (1, 3, 4)] == [False, False, True]
    write_process(folders[0], process | {"end": "finished"})
    assert [wait_for(folders, stop, at_once) for at_once in (2, 3)] == [False, True]
    with pytest.raises(ValueError, match="at_once is 0"):
        wait_for(folders, stop, 0)


def test_a_resumed_run_waits_for_what_it_waited_for_and_runs_still(config_of, tmp_path, sleeper, monkeypatch):
    run, other = TrainingRun(tmp_path / "run"), as_run_of(tmp_path / "other", sleeper)
    monkeypatch.setattr(background.subprocess, "Popen", lambda *args, **kw: SimpleNamespace(pid=os.getpid(), poll=int))
    run.start(config_of(run.folder), after=[other.folder, tmp_path / "gone"])
    for _ in range(2):
        write_process(run.folder, read_process(run.folder) | {"end": "stopped"})
        run.start()
        assert read_process(run.folder)["after"] == [str(other.folder)]
    write_process(run.folder, read_process(run.folder) | {"end": "stopped"})
    run.start(config_of(run.folder))
    assert read_process(run.folder)["after"] == []


def test_what_is_left_is_told_of_the_process_that_trains(tmp_path, sleeper):
    say(tmp_path, step=60, max_steps=100, loss=1.0, seconds_left=4000)
    assert TrainingRun(tmp_path).last["seconds_left"] is None
    time.sleep(0.01)
    run = as_run_of(tmp_path, sleeper)
    assert str(run) == f"{tmp_path}: starting, step 60 of 100, loss 1"
    say(tmp_path, step=61, max_steps=100, loss=0.5, seconds_left=39)
    say(tmp_path, event="saved", step=61)
    assert run.last["step"] == 61 and str(run).endswith("step 61 of 100, loss 0.5, 39 s left")
    write_process(tmp_path, read_process(tmp_path) | {"end": "stopped"})
    assert run.last["seconds_left"] is None and TrainingRun(tmp_path / "none").last is None


def test_steps_between_validations_decide_where_the_best_one_does(config_of, tmp_path, monkeypatch):
    monkeypatch.setattr(background.subprocess, "Popen", None)  # nothing starts
    (tmp_path / "checkpoint-3").mkdir()
    for best, error in ((True, ValueError), (False, TypeError)):
        config = config_of(tmp_path, validation_rows=4, eval_steps=2, load_best_model_at_end=best)
        config.save(tmp_path / background.CONFIG)
        with pytest.raises(error, match="steps between validations" if best else "not callable"):
            TrainingRun(tmp_path).start(replace(config, eval_steps=1))


def test_settings_that_do_not_fit_the_run_are_refused_before_it_starts(tmp_path, config_of, monkeypatch):
    monkeypatch.setattr(background.subprocess, "Popen", None)  # nothing starts
    with pytest.raises(FileNotFoundError, match="start the run with its settings"):
        TrainingRun(tmp_path).start()
    config = config_of(tmp_path)
    config.save(tmp_path / background.CONFIG)
    (tmp_path / "checkpoint-3").mkdir()
    with pytest.raises(ValueError, match="other settings, lora_r: "):
        TrainingRun(tmp_path).start(replace(config, lora_r=8))
    assert config.read(tmp_path / background.CONFIG).lora_r == 4
    monkeypatch.chdir(Path(config.dataset).parent)
    with pytest.raises(TypeError, match="not callable"):  # it would start
        TrainingRun(tmp_path).start(replace(config, dataset=Path(config.dataset).name, save_steps=7))
    assert config.read(tmp_path / background.CONFIG) == replace(config, save_steps=7)


@pytest.mark.slow
def test_a_run_is_stopped_and_gone_on_with_and_ends_as_an_undisturbed_one(config_of, tmp_path, sample):
    whole, parts = TrainingRun(tmp_path / "whole"), TrainingRun(tmp_path / "parts")
    parts.start(config_of(parts.folder, **LONG))
    with pytest.raises(BlockingIOError, match="trains there"):
        TrainingRun(parts.folder).start(config_of(parts.folder, **LONG))
    whole.start(config_of(whole.folder, **LONG), after=[parts.folder])
    assert parts.state == "starting"
    wait_until(lambda: parts.history())
    other = TrainingRun(parts.folder)  # as another kernel sees it
    assert whole.state == "waiting" and other.state == "training"
    other.stop()
    assert parts.wait(60) == other.state == "stopped", parts.log_lines()
    reached = max(parts.history())
    assert 0 < reached < 12 and not (parts.folder / "results.json").exists()
    assert whole.wait(120) == "finished", whole.log_lines()

    assert TrainingRun(parts.folder).start().wait(120) == "finished", parts.log_lines()
    assert min(entry["step"] for entry in parts.entries() if entry.get("event") == "training") == 0
    assert [e["step"] for e in parts.entries() if e.get("event") == "training"][-1] == reached
    assert list(parts.history()) == list(range(1, 13))
    assert parts.history() == whole.history()
    one, other = (weights(RunResult.read(run.folder)) for run in (whole, parts))
    assert one and all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    last = [entry for entry in parts.entries() if "loss" in entry][-1]
    assert last["memory"] > 2**27 and last["seconds_left"] == 0 and last["learning_rate"] >= 0


@pytest.mark.slow
def test_a_killed_run_is_lost_and_a_removed_folder_ends_it(config_of, tmp_path, capfd):
    run = TrainingRun(tmp_path / "run").start(config_of(tmp_path / "run", max_steps=500, save_steps=2))
    wait_until(lambda: list(run.folder.glob("checkpoint-*/complete.json")))
    os.kill(read_process(run.folder)["pid"], signal.SIGKILL)
    wait_until(lambda: run.state == "lost")
    assert main(["status", str(run.folder)]) == 0 and capfd.readouterr().out.startswith(f"{run.folder}: lost, step ")
    assert main(["resume", str(run.folder)]) == 0
    assert f"{run.folder}: starting" in capfd.readouterr().out
    wait_until(lambda: run.state == "training")
    child, before = psutil.Process(read_process(run.folder)["pid"]), max(run.history(), default=0)
    assert before >= 2
    os.rename(run.folder, tmp_path / "away")
    wait_until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)
    assert TrainingRun(run.folder).state == "new" and "was removed" in (tmp_path / "away" / "log.txt").read_text()


@pytest.mark.slow
def test_what_a_run_fails_of_is_said_in_a_sentence(config_of, tmp_path, sample):
    run = TrainingRun(tmp_path / "run").start(config_of(tmp_path / "run", dataset=tmp_path / "none.jsonl"))
    assert run.wait(60) == "failed" and "none.jsonl" in run.error and "\n" not in run.error
    assert str(run) == f"{run.folder}: failed: {run.error}"


def test_states_are_said_of_folders(tmp_path, capsys):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    (tmp_path / "studio.yaml").write_text("locale: en")
    assert main(["status", *map(str, sorted(tmp_path.iterdir()))]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'one'}: new\n{tmp_path / 'two'}: new\n"
    assert main(["status", str(tmp_path / "nope")]) == 2
    assert "nope is not there: name the output_dir of a run" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_shorter_than_an_interval_of_logging_has_a_loss(config_of, tmp_path):
    train(config_of(tmp_path, max_steps=3, logging_steps=2))
    run = TrainingRun(tmp_path)
    assert list(run.history()) == [2, 3] and run.last["step"] == 3
    train(config_of(tmp_path / "short", max_steps=2, logging_steps=5))
    assert list(TrainingRun(tmp_path / "short").history()) == [2]
