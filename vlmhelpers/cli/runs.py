"""The commands about runs: training here or in the background, their states, and the page of the panel."""

import os
from collections.abc import Iterable
from pathlib import Path

import vlmhelpers as vlm
from vlmhelpers.cli.advice import with_options
from vlmhelpers.cli.parser import make_settings
from vlmhelpers.training.background import TrainingRun, wait_for
from vlmhelpers.training.progress import STOP, Stopped, reported, say

__all__ = ["resume", "serve", "start", "status", "stop", "studio", "train"]


def train(
    config: str | None = None,
    after: Iterable[str] = (),
    at_once: int = 1,
    accept_changes: bool = False,
    **changes: object,
) -> None:
    """Trains as a file or `changes` say, after the runs in other folders."""
    config = read_config(config, **changes)
    folder = Path(config.output_dir)
    if after:
        say(folder, event="waiting")
        if not wait_for(after, folder / STOP, at_once):
            with reported(folder) as begin:
                begin()
                raise Stopped(f"{folder} was stopped before it began")
        say(folder, event="starting")
    vlm.train(config, accept_changes)


def read_config(file: str | None, changes: Iterable[str] = (), method: str | None = None) -> "vlm.RunConfig":
    """The settings in a file, if any, with `changes`, texts such as seed=3. Raises ValueError for another text."""
    for change in changes:
        if "=" not in change:
            raise ValueError(f"--set {change}: write it as NAME=VALUE")
    changes = ({"method": method} if method else {}) | dict(change.split("=", 1) for change in changes)
    if file is not None:
        return vlm.RunConfig.read(file, **changes)
    needed = [name for name, setting in vlm.RunConfig.described().items() if setting.is_required]
    if missing := [name for name in needed if name not in changes]:
        raise ValueError(f"there is no {', no '.join(missing)}: name a CONFIG, or add --set {missing[0]}=...")
    return make_settings(vlm.RunConfig, changes)


def start(
    config: str | None = None,
    after: Iterable[str] = (),
    at_once: int = 1,
    accept_changes: bool = False,
    **changes: object,
) -> None:
    """Starts a run in the background."""
    config = read_config(config, **changes)
    print(TrainingRun(config.output_dir).start(config, accept_changes, after, at_once))


def status(runs: list[str]) -> None:
    """Prints a line for each run; files beside them, as FOLDER/* names them, are passed over."""
    folders = [run for run in runs if not os.path.isfile(run)]
    if missing := [folder for folder in folders if not os.path.isdir(folder)]:
        raise FileNotFoundError(f"{missing[0]} is not there: name the output_dir of a run")
    print(with_options("train", "\n".join(str(TrainingRun(folder)) for folder in folders)))


def stop(runs: list[str], now: bool = False) -> None:
    """Lets runs save a checkpoint and end, or ends them."""
    for run in map(TrainingRun, runs):
        run.abort() if now else run.stop()
        print(run)


def resume(runs: list[str], accept_changes: bool = False) -> None:
    """Goes on with runs in the background, one after the other."""
    for number, folder in enumerate(runs):
        print(TrainingRun(folder).start(accept_changes=accept_changes, after=runs[:number]))


def studio(folder: str = "outputs/studio", browser: bool = True, **options: object) -> None:
    """Serves the panel as a page until Ctrl-C."""
    from vlmhelpers.studio.page import serve

    serve(folder, open_browser=browser, **options)


def serve(names: Iterable[str] = (), **options: object) -> None:
    """Serves the job interface until Ctrl-C."""
    from vlmhelpers.service.server import serve

    serve(names=names, **options)
