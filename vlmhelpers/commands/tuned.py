"""A tuned model by the name of what it lies in, with the base that it was made from."""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from transformers import PreTrainedModel, ProcessorMixin

from vlmhelpers.commands.settings import Loading
from vlmhelpers.common.digests import digest
from vlmhelpers.common.file_digests import file_digest
from vlmhelpers.common.files import remove_abandoned
from vlmhelpers.estimation.suggestion import Values, suggest
from vlmhelpers.export.adapter_files import ADAPTER_CONFIG_FILE
from vlmhelpers.export.adapters import attach, find_base, load_processor
from vlmhelpers.families import TINY_BASES
from vlmhelpers.models import loading
from vlmhelpers.models.loading import load_model, resolve_model
from vlmhelpers.training.background import CONFIG, TrainingRun
from vlmhelpers.training.checkpoints import newest_whole
from vlmhelpers.training.config import ADAPTER, MODEL, RESULTS, SETTINGS, RunConfig

_ENDED = ("new", "finished", "failed")  # states of a run whose folder is to be believed before its checkpoints


@dataclass
class Tuned:
    """A loaded model, in eval mode, with its processor."""

    model: PreTrainedModel
    processor: ProcessorMixin
    folder: str  # what was loaded: an adapter's or a model's folder, or a hub id
    adapter: str | None  # the adapter's folder; None for a whole model
    base: str | None  # folder or hub id of the untuned model; None where nobody has written it down
    bits: int
    backend: str = "auto"
    run: str | None = None  # the folder of the run that made it
    config: RunConfig | None = None  # its settings
    note: str = ""  # of a hub id or a family: which model it came to here
    _base: PreTrainedModel | None = field(default=None, repr=False)

    @property
    def is_base(self) -> bool:
        """Whether it is an untuned model itself."""
        return self.adapter is None and self.base == self.folder

    @contextmanager
    def base_model(self) -> Iterator[tuple[PreTrainedModel, ProcessorMixin]]:
        """The untuned model and a processor: without the adapter, or loaded beside a model of own weights.

        It sees the images as the tuned model does, with its pixel cap, and is asked by its own chat template. Raises
        ValueError where the base is not known.
        """
        if self.adapter:
            with self.model.disable_adapter():
                yield self.model, self._base_processor
        elif self.is_base:
            yield self.model, self.processor
        else:
            if self.base is None:
                raise ValueError(f"{self.folder} does not say which model it was made from: evaluate without the base")
            if self._base is None:  # it stays: training took more memory than two models
                model, _ = load_model(self.base, self.bits, backend=self.backend)
                self._base = model.eval()
            yield self._base, self._base_processor

    @cached_property
    def _base_processor(self):
        template = loading.load_processor(self.base).chat_template
        if template == self.processor.chat_template:
            return self.processor
        processor = deepcopy(self.processor)
        processor.chat_template = processor.tokenizer.chat_template = template
        return processor

    @property
    def values(self) -> Values:
        """The `Values` that suit the model here."""
        return suggest(self.base or self.folder, bits=self.bits)


def load_tuned(name: str | Path, bits: int | None = None, backend: str = "auto") -> Tuned:
    """A model that is to answer, by `name`.

    `name`: the folder of a run (what it has trained; of one that was stopped, lost or trains still, its newest whole
    checkpoint), of an adapter or of a model, a hub id, or a family. `bits`: 4 or 16; None takes the run's own, else 16
    for a tiny model and 4 for others. Raises FileNotFoundError and ValueError, with the remedy, for a folder that holds
    none of these, and the errors of `load_model`.
    """
    if not Path(name).is_dir() and str(name) not in TINY_BASES and str(name).count("/") != 1:
        known = f"a family ({', '.join(TINY_BASES)}) or a hub id (owner/name)"
        raise FileNotFoundError(f"there is no folder {name}: name a run's, an adapter's or a model's, {known}")
    folder, run = find_weights(name) if Path(name).is_dir() else (Path(name), None)
    config = read_settings(run) if run else None
    if config and config.backend == "transformers" and backend == "auto":
        backend = "transformers"  # a run by Unsloth answers without it, too
    if (folder / ADAPTER_CONFIG_FILE).is_file():
        return _with_adapter(folder, run, config, bits, backend)
    found, note = (str(folder), "") if folder.is_dir() else resolve_model(str(name))
    base = resolve_model(config.model_id)[0] if config else None if folder.is_dir() else found
    bits = bits or (16 if config else suggested_bits(found))
    model, processor = load_model(found, bits, config.max_pixels if config else None, backend)
    return Tuned(model.eval(), processor, found, None, base, bits, backend, run and str(run), config, note)


def use_tuned(settings: Loading, tuned: Tuned | None = None) -> Tuned:
    """The model that the settings of a step name: `tuned`, where it is loaded, else by `load_tuned`.

    Raises ValueError where `tuned` is another one, or was loaded otherwise, and the errors of `load_tuned`.
    """
    if tuned is None:
        return load_tuned(settings.model, settings.bits, settings.backend)
    named = find_weights(settings.model)[0] if Path(settings.model).is_dir() else resolve_model(settings.model)[0]
    if Path(named).resolve() != Path(tuned.folder).resolve():
        raise ValueError(f"model is {settings.model}, and the model that is loaded is {tuned.folder}: load that one")
    for name, usual in (("bits", None), ("backend", "auto")):
        if (value := getattr(settings, name)) not in (usual, loaded := getattr(tuned, name)):
            raise ValueError(f"{name} is {value}, and the model is loaded with {name}={loaded}: load it with the other")
    return tuned


def _with_adapter(folder, run, config, bits, backend):
    base = base_of(folder, config)
    bits = bits or (config and config.bits) or suggested_bits(base)
    model, _ = load_model(base, bits, backend=backend)
    tuned, processor = attach(model, folder).eval(), load_processor(folder, base)
    return Tuned(tuned, processor, str(folder), str(folder), base, bits, backend, run and str(run), config)


def base_of(adapter: str | Path, config: RunConfig | None, base: str | None = None) -> str:
    """`base`, or the one that the adapter names; of one that was trained elsewhere, the model of its run's settings.

    Raises the errors of `find_base`.
    """
    try:
        return find_base(adapter, base)
    except FileNotFoundError:
        if base or config is None:
            raise
        return resolve_model(config.model_id)[0]


def is_run(folder: str | Path) -> bool:
    """Whether a folder is that of a run."""
    return any((Path(folder) / name).is_file() for name in (SETTINGS, CONFIG))


def read_settings(run: str | Path) -> RunConfig:
    """The settings of a run: as they were filled in, where it has ended, else as it was started with them.

    Raises FileNotFoundError for a folder of no run.
    """
    files = [Path(run) / name for name in (SETTINGS, CONFIG)]
    if not (Path(run) / RESULTS).is_file():
        files.reverse()
    return RunConfig.read(next((file for file in files if file.is_file()), files[0]))


def find_run(name: str | Path) -> Path | None:
    """The folder of the run that made what has this name, as `load_tuned` takes it; None where there is none."""
    return find_weights(name)[1] if Path(name).is_dir() else None


def find_weights(name: str | Path) -> tuple[Path, Path | None]:
    """(the folder with the weights, its run's folder if any) of a run's, an adapter's or a model's folder.

    Raises the errors of `find_trained`, and FileNotFoundError for a folder of none of these.
    """
    folder = Path(name)
    folder, run = (find_trained(folder), folder) if is_run(folder) else (folder, folder.parent)
    if not any((folder / file).is_file() for file in (ADAPTER_CONFIG_FILE, "config.json")):
        raise FileNotFoundError(f"{folder} holds no run, no adapter and no model: name the folder of one")
    return folder, run if is_run(run) else None


def find_trained(run: str | Path) -> Path:
    """The folder of a run's adapter or model; of a run that has not ended, of its newest whole checkpoint.

    Raises FileNotFoundError where nothing is saved yet, and ValueError for a checkpoint that needs what is not there.
    """
    run = Path(run)
    remove_abandoned(run)  # puts back what a killed process was about to replace
    trained = next((run / name for name in (ADAPTER, MODEL) if (run / name).is_dir()), None)
    if trained and TrainingRun(run).state in _ENDED:
        return trained
    checkpoint = newest_whole(run)
    if not (checkpoint or trained):
        raise FileNotFoundError(f"{run} has saved nothing yet: let the run train until its first checkpoint")
    if checkpoint is None:
        return trained
    if read_settings(run).changes_base:  # the adapter stands on weights that only the run has
        raise ValueError(f"{run} starts its adapter from the base's weights, and has not ended: resume it first")
    return checkpoint


def weights_digest(folder: str | Path) -> str:
    """A digest of the weights in a folder; of a hub id it is that of none."""
    return digest(*(file_digest(path) for path in sorted(Path(folder).glob("*.safetensors"))))


def suggested_bits(model_id: str) -> int:
    """16 for a tiny model, 4 for others."""
    return 16 if suggest(model_id).is_tiny else 4
