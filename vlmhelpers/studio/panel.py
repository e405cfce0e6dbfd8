"""The training panel: eight tabs over one run at a time, and the code that does the same without it."""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import transformers  # noqa: F401  (while one thread imports it first, another gets a part of it, and fails)
from markupsafe import Markup
from PIL import Image

from vlmhelpers.common.display import Html, with_widget
from vlmhelpers.common.environment import quiet
from vlmhelpers.families.published import NAMES
from vlmhelpers.studio.chart import as_image
from vlmhelpers.studio.controls import make_controls
from vlmhelpers.studio.fields import NONE
from vlmhelpers.studio.saved import read_saved, write_saved
from vlmhelpers.studio.tabs.data import FIELDS
from vlmhelpers.studio.texts import LANGUAGES, texts
from vlmhelpers.studio.used import unused
from vlmhelpers.studio.view import View
from vlmhelpers.studio.work import Worker
from vlmhelpers.training.background import CONFIG, TrainingRun
from vlmhelpers.training.config import RunConfig
from vlmhelpers.training.methods.catalog import METHODS
from vlmhelpers.training.progress import PROCESS, read_process

if TYPE_CHECKING:
    from vlmhelpers.commands import EvaluationResult, Exported, Plan
    from vlmhelpers.data.report import Report
    from vlmhelpers.studio.talk import Turn

_BEGIN = {"model_id": NAMES[0], "dataset": "", "output_dir": "run-1"}
_BEGIN |= {"test_rows": 100, "validation_rows": 32, "sample_answers": 3}
_EVERY = 1.0  # seconds from one look at the run to the next
_PATHS = ("dataset", "image_root", "chat_template")
# What a look at the data goes by.
_OF_DATA = ("model_id", "chat_template", "max_pixels", "dataset", "image_root", *FIELDS)


class Studio:
    """The panel of the runs in a folder: it shows itself in a notebook, and code can do all that a hand can.

    `form` has a control for each setting of RunConfig. `problems`: what is wrong with settings, by their names.
    `lacking`: settings that name fields which the data does not have, with those that it has. `turns`: of the chat. A
    run goes on without the panel, and a panel of the same folder finds it.
    """

    def __init__(
        self,
        folder: str | os.PathLike = "outputs/studio",
        locale: str | None = None,
        clock: str | None = None,
        **settings: object,
    ):
        """`folder`: each run has a folder inside it. `locale`: a language of `texts.LANGUAGES`; None: as it was left.

        `clock`: who looks at the run each second: "thread"; "page", the browser, for pages that show nothing that a
        thread does, as Colab's; "none". None chooses. `settings`: those of RunConfig, over those that were left.
        Raises ValueError for an unknown locale, clock or setting.
        """
        if clock not in _CLOCKS:
            raise ValueError(f"clock={clock!r}: choose one of {', '.join(map(repr, _CLOCKS))}")
        quiet()  # what libraries note in the panel's threads would appear under any cell
        # A cell may change the working directory; in the settings the folder stays as it was given.
        self.folder, self._root = Path(folder), Path(os.path.abspath(folder))
        saved = read_saved(self._root)
        left = saved.pop("locale", None)
        self.locale = locale or (left if left in [*LANGUAGES] else "en")
        self.texts = texts(self.locale)
        self.problems, self.lacking, self._known, self._stale, self._filling = {}, {}, {}, False, True
        self._shown = self._tuned = self._talk = self._family = self._model_id = self._filled = None
        self.clock = clock or ("page" if "google.colab" in sys.modules else "thread")
        self.worker = Worker(self.clock == "thread", lambda: self.texts["busy"], self.refresh)
        self.form, self.gpu, self.data_folder = make_controls()
        self.view = View(self, self.clock == "page", _EVERY)
        self.tabs, self.widget = self.view.tabs, self.view.widget
        self._fill(saved, settings)
        self._speak()
        self._watch_controls()
        _newest[self._root] = self
        if self.clock == "thread":
            threading.Thread(target=self._keep_fresh, daemon=True).start()

    def _fill(self, saved, settings):
        """The controls as they were left, with `settings` in place of those."""
        self.data_folder.value = os.curdir
        for group, form in self._others.items():
            form.fill(saved.pop(group, {}))
        saved = {name: value for name, value in saved.items() if name in self.form.fields}
        self.set(**_defaults() | _BEGIN | saved | settings)

    @property
    def _others(self):
        """The forms of what comes after a training, by their group."""
        export = self.tabs["export"].forms
        forms = {"evaluating": self.tabs["evaluate"].form, "chatting": self.tabs["chat"].form}
        return forms | {"exporting": export["export"], "pushing": export["push"]}

    def _watch_controls(self):
        for field in self.form.fields.values():
            field.on_change(self._changed)
        self.form.fields["output_dir"].on_change(self._attach)
        for form in self._others.values():
            for field in form.fields.values():
                field.on_change(self._keep)

    @property
    def settings(self) -> dict[str, object]:
        """The settings that have a use, as they stand in the panel, right or wrong."""
        values = self.form.values
        used = {name: value for name, value in values.items() if name not in unused(values, self._family)}
        name = used["output_dir"]
        return used | {"output_dir": str(self.folder / name) if name else ""}

    def set(self, **settings: object) -> "Studio":
        """Changes settings; what is wrong with a value is in `problems`. Raises ValueError for a name that is none."""
        if unknown := sorted(set(settings) - set(self.form.fields)):
            raise ValueError(f"there is no setting {unknown[0]!r}: choose from {', '.join(self.form.fields)}")
        if "output_dir" in settings:
            settings["output_dir"] = _name_of(settings["output_dir"] or "", self.folder)
        self._filling = True
        try:
            self.form.fill(settings)
        finally:
            self._filling = False
            self._changed()
        return self

    @property
    def config(self) -> RunConfig:
        """The run's settings. Raises ValueError, with the reasons, where one is wrong."""
        if problems := self._find_problems():
            raise ValueError("; ".join(problems.values()))
        return RunConfig(**self.settings)

    @property
    def run(self) -> TrainingRun:
        """The run whose folder the settings name."""
        name = self.form.fields["output_dir"].value
        return self._run_in(self._root / (name if _is_name(name) else "-"))  # where nothing is

    def _run_in(self, folder):
        """One object for a folder: it knows what it has read."""
        return self._known.setdefault(folder, TrainingRun(folder))

    def attach(self, name: str) -> "Studio":
        """Chooses a run of the folder with its settings. Raises OSError and ValueError where they cannot be read."""
        settings = vars(RunConfig.read(self._root / name / CONFIG))
        return self.set(**settings | {name: _as_near(settings[name]) for name in _PATHS})

    @property
    def runs(self) -> dict[str, TrainingRun]:
        """All runs in the panel's folder, by name."""
        folders = {path.parent for name in (CONFIG, PROCESS) for path in self._root.glob(f"*/{name}")}
        return {folder.name: self._run_in(folder) for folder in sorted(folders)}

    @property
    def others_running(self) -> list[str]:
        """The folders of other runs here that are going on or waiting: what is started now begins after them."""
        return self._others_than(self.run)

    def _others_than(self, mine):
        return [str(run.folder) for run in self.runs.values() if run.folder != mine.folder and run.is_running]

    @property
    def rows_needed(self) -> str:
        """The kind of rows that the method takes, a key of `data.schema.KINDS`. ValueError for a wrong method."""
        if problem := self.problems.get("method"):
            raise ValueError(problem)
        return METHODS[self.form.fields["method"].value].rows

    def preview(self, rows: int = 3) -> Html:
        """Some rows with their images, and the label mask of the first: see `preview.preview`."""
        from vlmhelpers.studio.preview import preview

        return preview(self._of_data(), self.rows_needed, rows)

    def check(self) -> "Report":
        """The validation report of all rows."""
        from vlmhelpers.studio.preview import check

        return check(self._of_data(), self.rows_needed)

    def _of_data(self):
        """The settings of the data alone: rows can be looked at before all else is right."""
        values = {name: value for name, value in self.settings.items() if name in _OF_DATA}
        return _made(RunConfig, values | {"output_dir": str(self.run.folder)})

    def preflight(self) -> "Plan":
        """Tokens, memory and time of the run, on the GPU that is planned for."""
        from vlmhelpers.commands import preflight

        plan = preflight(self.config, None if self.gpu.value == NONE else self.gpu.value)
        self._filled, self._stale = plan.config, True  # shown in the empty fields
        return plan

    def start(self, accept_changes: bool = False) -> "Plan | None":
        """Starts the run once `preflight` has found that it fits, or goes on with it; after others in the folder.

        Returns the Plan; None for a run that was stopped or lost. Raises ValueError for one that is going on, and for
        one that does not fit on this GPU, with what to change, and what `TrainingRun.start` raises.
        """
        from vlmhelpers.commands import preflight

        config, run, plan = self.config, self.run, None  # as they are now: a preflight takes its time
        self._refuse_while_running()
        self.free()
        if run.state not in ("stopped", "lost"):
            plan = preflight(config)
            plan.raise_if_too_large()
        run.start(config, accept_changes, after=self._others_than(run))
        return plan

    def stop(self) -> None:
        """Asks the run to save a checkpoint and to end; `start` goes on from there."""
        self.run.stop()

    def abort(self) -> None:
        """Ends the run at once; what came after its last checkpoint is lost."""
        self.run.abort()

    def watch(self, seconds: float | None = None) -> str:
        """Shows the run until it has ended, or for so many seconds, and returns its state.

        For pages that show nothing while no cell runs, such as Colab's may be.
        """
        end = time.monotonic() + (float("inf") if seconds is None else seconds)
        while self.run.is_running and time.monotonic() < end:
            self.refresh()
            time.sleep(max(0, min(_EVERY, end - time.monotonic())))
        self.refresh()
        return self.run.state

    @property
    def progress(self) -> Html:
        """The run as it stands: state, charts, sampled answers."""
        tab = self.tabs["run"]
        tab.refresh()
        charts = Markup("").join(map(as_image, tab.draw(self.run)))
        return Html(Markup(tab.state.value) + charts + Markup(tab.samples.value), str(self.run))

    def new_run(self) -> None:
        """Chooses a folder that no run has."""
        taken, number = self.runs, 1
        while f"run-{number}" in taken:
            number += 1
        self.set(output_dir=f"run-{number}")

    def evaluate(
        self, progress: Callable[[str, int, int], object] | None = None, **settings: object
    ) -> "EvaluationResult":
        """Answers to held-out rows by base and tuned model, with scores; `settings`: those of `commands.Evaluating`.

        `progress`: as of `commands.evaluate_run`. Raises ValueError while the run is going on, and what that raises.
        """
        from vlmhelpers.commands import Evaluating, evaluate_run

        settings = _made(Evaluating, {"model": str(self.run.folder)} | settings)
        return evaluate_run(settings, progress, self._load())

    @property
    def turns(self) -> "list[Turn]":
        """The turns of the chat."""
        return self._talk.turns if self._talk else []

    def chat(
        self,
        question: str,
        images: Iterable[Image.Image | str | Path] = (),
        base: bool = False,
        write: Callable[[], object] = lambda: None,
        **settings: object,
    ) -> "Turn":
        """Asks the run's model, also one of a run that was stopped, and goes on with the chat.

        `base`: the model before training answers, too. `write` is called while the answer grows. `settings`: those of
        `commands.Answering`. Raises ValueError while the run is going on, and FileNotFoundError without a model.
        """
        from vlmhelpers.commands import Answering
        from vlmhelpers.common.image_workers import open_apart

        images = [image if isinstance(image, Image.Image) else open_apart(image) for image in images]
        answering = _made(Answering, settings)
        self._load()
        return self._talk.ask(question, images, answering, base, write)

    def clear(self) -> None:
        """Begins the chat anew."""
        if self._talk:
            self._talk.clear()

    def free(self) -> None:
        """Forgets the loaded model, and the chat with it: the memory is free for a run."""
        if self._tuned is None:
            return
        from accelerate.utils.memory import clear_device_cache

        self._tuned = self._talk = None
        clear_device_cache(garbage_collection=True)

    def export(self, **settings: object) -> "Exported":
        """Exports what the run has trained; `settings`: those of `commands.Exporting`."""
        from vlmhelpers.commands import Exporting, export_run

        settings = _made(Exporting, {"model": str(self.run.folder)} | settings)
        self._refuse_while_running()
        self.free()
        return export_run(settings)

    def push(self, **settings: object) -> object:
        """Pushes what was exported to the Hub; `settings`: those of `commands.Pushing`."""
        from vlmhelpers.commands import Pushing, push_run

        return push_run(_made(Pushing, settings))

    def tensorboard(self) -> Html:
        """Starts TensorBoard for the folder's runs: see `tensorboard.start`."""
        from vlmhelpers.studio.tensorboard import start

        return start(self._root)

    def save(self, path: str | os.PathLike) -> None:
        """Writes the settings to a .yaml or .json file that the command line takes. ValueError for wrong settings."""
        self.config.save(path)

    def load(self, path: str | os.PathLike) -> "Studio":
        """Takes the settings of such a file, but for the output folder. Raises ValueError and OSError, as it reads."""
        settings = vars(RunConfig.read(path))
        return self.set(**{name: value for name, value in settings.items() if name != "output_dir"})

    @property
    def cells(self) -> list[str]:
        """The notebook cells that do by hand what the run does. Raises ValueError for wrong settings."""
        from vlmhelpers.studio.code import cells

        return cells(self.config)

    def refresh(self) -> None:
        """Shows what has changed in the run's folder."""
        if self._stale:
            self._stale = False
            self._show_settings()
        self.view.refresh()

    def _load(self):
        """The run's model, loaded anew where the run has saved another one since."""
        from vlmhelpers.commands import load_tuned
        from vlmhelpers.studio.talk import Talk

        self._refuse_while_running()
        process = read_process(self.run.folder)
        if self._tuned is None or self._loaded != (self.run.folder, process):
            self.free()
            self._tuned, self._loaded = load_tuned(self.run.folder), (self.run.folder, process)
            self._talk = Talk(self._tuned)
        return self._tuned

    def _refuse_while_running(self):
        if self.run.is_running:
            raise ValueError(self.texts["running"].format(folder=self.run.folder))

    def speak(self, locale: str) -> None:
        """Shows the panel in a language of `texts.LANGUAGES`. Raises ValueError for another."""
        self.texts, self.locale = texts(locale), locale
        self._speak()
        self._keep()

    def _speak(self):
        for control in (self.form, self.gpu, self.data_folder):
            control.speak(self.texts)
        self.view.speak(self.locale, self.texts)
        self._show_settings()
        self.refresh()

    def _changed(self):
        if self._filling:
            return
        self._filled = None  # what fits depends on all of them
        shown = tuple(self.form.fields[name].value for name in ("output_dir", "model_id", "dataset"))
        if shown != self._shown:  # what a tab shows is of another run, or of other data
            self._shown = shown
            self.view.clear()
        if self.form.fields["model_id"].value != self._model_id:
            self._model_id, self._family = self.form.fields["model_id"].value, None
            threading.Thread(target=self._find_family, args=(self._model_id,), daemon=True).start()
        self._show_settings()
        self._keep()
        self.refresh()

    def _attach(self):
        """When a run that is there already is chosen by hand."""
        if not self._filling and "output_dir" not in self.problems and (self.run.folder / CONFIG).is_file():
            with suppress(ValueError, OSError):  # of another version: its settings stay unknown
                self.attach(self.run.folder.name)

    def _find_family(self, model_id):
        """What the model's family has no use for goes with the next look: transformers takes seconds to load."""
        with suppress(Exception):  # a name that is half typed, a model that cannot be read now
            from vlmhelpers.families import family_of

            family = family_of(model_id)
            if model_id == self._model_id:
                self._family, self._stale = family, True

    def _show_settings(self):
        """What has no use is hidden, what is wrong is refused at its control, and the code follows."""
        hidden = unused(self.form.values, self._family)
        self.problems = self._find_problems()
        for name, field in self.form.fields.items():
            field.show(name not in hidden)
            field.refuse(self.problems.get(name))
            field.hint(getattr(self._filled, name, None))
        self.form.fields["output_dir"].offer(self.runs)
        self.view.code.show_code()

    def _find_problems(self):
        """What is wrong with the values themselves, and with what they name."""
        values, texts = self.settings, self.texts
        problems = RunConfig.problems(values)
        for name in _PATHS:
            if values.get(name) and not os.path.exists(values[name]):
                problems[name] = texts["no_file"].format(name=values[name])
        if not values["dataset"]:
            problems["dataset"] = texts["choose_file"]
        for name, fields in self.lacking.items():
            problems[name] = texts["no_field"].format(name=values[name], fields=", ".join(fields))
        if not _is_name(run := self.form.fields["output_dir"].value):
            problems["output_dir"] = texts["one_name"].format(name=run)
        return problems

    def refuse_fields(self, lacking: dict[str, list[str]]) -> None:
        """Takes note of settings that name fields which the data lacks, with the fields that it has."""
        if lacking != self.lacking:
            self.lacking = lacking
            self._show_settings()

    def _keep(self):
        """Keeps the settings for the panel that is next opened on this folder; a full disk does not end this one."""
        others = {group: form.values for group, form in self._others.items()}
        try:
            write_saved(self._root, {"locale": self.locale} | self.form.values | others)
        except OSError as error:
            self.tabs["run"].fail(error)

    def _keep_fresh(self):
        while _newest.get(self._root) is self:  # a cell that is run again makes another panel
            time.sleep(_EVERY)
            try:
                self.refresh()
            except Exception as error:  # of a folder that is being removed, and the next look may succeed
                self.tabs["run"].fail(error)

    def __repr__(self):
        return f"Studio({os.fspath(self.folder)!r}): {self.run}"

    def _repr_html_(self):
        """For a page without a kernel: how the run stands."""
        return Markup("<p>{}</p>{}").format(repr(self), self.progress._repr_html_())

    def _repr_mimebundle_(self, include=None, exclude=None):
        return with_widget(self, lambda: self.widget)


_CLOCKS = (None, "thread", "page", "none")
_newest = {}  # folder -> the panel that was made last for it


def _defaults():
    return {name: setting.default for name, setting in RunConfig.described().items() if not setting.is_required}


def _is_name(text):
    """Whether a text is the name of a folder, and not a path."""
    return text == Path(text).name and 0 < len(text) <= 100 and text != os.pardir


def _as_near(path):
    """A path inside the working directory as one that starts there: it is readable, and not of this machine."""
    inside = path and Path(path).is_relative_to(Path.cwd())
    return Path(path).relative_to(Path.cwd()).as_posix() if inside else path


def _made(kind, values):
    """Settings of a kind. Raises ValueError with a sentence for each that is wrong."""
    if problems := kind.problems(values):
        raise ValueError("; ".join(problems.values()))
    return kind(**values)


def _name_of(folder, parent):
    """The name of a run's folder inside the panel's; the path of another one."""
    if not folder:
        return ""
    path = Path(os.path.normpath(folder))
    for place in (parent, Path(os.path.abspath(parent))):
        if path.is_relative_to(place):
            return path.relative_to(place).as_posix()
    return os.fspath(path)
