"""One training run, from a file of rows to an adapter or a model, and what it leaves behind."""

# Imports nothing heavy: notebook_launcher does not fork after bitsandbytes, and Unsloth has to precede transformers.

import json
import os
import shutil
import sys
import time
import warnings
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from vlmhelpers.common.digests import changed_settings
from vlmhelpers.common.distributed import on_main, only_main_prints
from vlmhelpers.common.environment import quiet
from vlmhelpers.common.file_digests import read_digest
from vlmhelpers.common.files import atomic_file, atomic_folder, name_full_disk, one_process, remove_abandoned
from vlmhelpers.models.backends import use_unsloth
from vlmhelpers.training.config import ADAPTER, HELD_OUT, MODEL, REJECTED, RESULTS, SETTINGS, RunConfig
from vlmhelpers.training.methods.catalog import METHODS
from vlmhelpers.training.progress import Stopped, make_reporter, reported, say

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict, IterableDataset


_OF_ADAPTERS = ("README.md", "adapter_config.json", "training_args.bin", "reward_scale.json")
_DEFAULTS = {name: setting.default for name, setting in RunConfig.described().items() if not setting.is_required}
_MISSING = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
_ODD = (ValueError, TypeError, KeyError, AttributeError)  # for results of another version, or of any content


@dataclass(frozen=True)
class RunResult:
    """What a run ended with."""

    folder: str  # of what was trained: adapter, or model where its own weights were
    steps: int  # optimizer steps, all in all
    seconds: float  # of training, since the run was last started
    rows: dict  # how many were read, rejected, trained on, and held out as test
    history: list  # what was logged: dicts with `step`, `epoch`, `loss` and more
    best_step: int | None = None  # of the best validation, where early stopping or the best checkpoint ask for it

    @property
    def adapter(self) -> str | None:
        """The adapter's folder; None where the weights of the model itself were trained."""
        return self.folder if Path(self.folder).name == ADAPTER else None

    @property
    def model(self) -> str | None:
        """The folder of the whole model, with its processor; None where adapters were trained."""
        return None if self.adapter else self.folder

    @property
    def held_out(self) -> str | None:
        """The folder of the held-out rows, which `load_held_out` opens; None for a run without `test_rows`."""
        return str(Path(self.folder).with_name(HELD_OUT)) if self.rows["test"] else None

    @classmethod
    def read(cls, output_dir: str | os.PathLike) -> "RunResult":
        """The result that a finished run has written to its `output_dir`. Raises FileNotFoundError without one."""
        values = _read_results(output_dir)
        folder = Path(output_dir) / values.get("folder", ADAPTER)
        others = [values[field.name] for field in fields(cls)[1:-1]]
        return cls(str(folder), *others, values.get("best_step"))  # of an earlier version's run it is not there


def train(config: RunConfig, accept_changes: bool = False) -> RunResult:
    """Trains as a `RunConfig` says, by its method; after an interruption, goes on from the last whole checkpoint.

    Writes to `config.output_dir` the folders adapter (model, where the model's own weights are trained) and held_out
    (with `test_rows`; rows of messages, by any method), rejected.csv, run_config.yaml, results.json and checkpoints. A
    run that is finished says so, and changes nothing. Works on several processes, by
    `accelerate.notebook_launcher(train, (config,))` or `accelerate launch -m vlmhelpers train CONFIG`: with
    configs/ddp.yaml each GPU holds the model, with configs/fsdp.yaml a part (FSDP2); both ran on CPUs only.

    Raises ValueError for wrong settings, without rows and, unless `accept_changes`, where the run in that folder was
    begun with other settings, data, weights or versions, which it names; BlockingIOError where another process trains
    there; OSError where the disk is full; `progress.Stopped` where it was asked to stop, by `TrainingRun` or the file
    stop in its folder: the same call goes on.
    """
    with only_main_prints(), _alone(Path(config.output_dir)), reported(Path(config.output_dir)) as begin:
        alone = int(os.environ.get("WORLD_SIZE", 1)) == 1
        if alone and (finished := _find_finished(config, accept_changes)):
            return finished
        if _may_use_unsloth(config.runs_on):
            use_unsloth()
        quiet()
        from vlmhelpers.models.loading import choose_model
        from vlmhelpers.training import checkpoints, pipeline

        pipeline.refuse_early(config)
        pipeline.training_arguments(config)  # joins the processes
        if not alone and (finished := on_main(lambda: _find_finished(config, accept_changes))):
            return finished
        dataset = read_rows(config)
        model_id = choose_model(config.model_id)
        rows = pipeline.load_rows(config, dataset, pipeline.fresh_processor(config, model_id))
        config = pipeline.fill_in(config, model_id, rows.parts)
        trainer = pipeline.make_trainer(config, model_id, rows.parts)
        checkpoint = checkpoints.resume_from(trainer, accept_changes)
        begin()
        if config.sample_answers:
            _add_sampler(config, trainer, rows, pipeline.fresh_processor(config, model_id))
        _save_rejected(Path(config.output_dir) / REJECTED, rows)
        made_of = on_main(lambda: _made_of(config, dataset, trainer.model.config._name_or_path))
        with _start_of(config, trainer) as start:
            seconds = _learn(config, trainer, checkpoint)
            with name_full_disk(Path(config.output_dir)):
                if config.streaming:
                    _count_stream(config, trainer, dataset, rows)
                _save_trained(config, trainer, pipeline.fresh_processor(config, model_id), start)
                return _save(config, trainer, seconds, rows, made_of)


def _learn(config, trainer, checkpoint):
    """Trains to the end, and takes the weights that are to be kept; the seconds of it. Raises Stopped before that."""
    from vlmhelpers.training import checkpoints

    trainer.add_callback(reporter := make_reporter(Path(config.output_dir)))
    started = time.perf_counter()
    trainer.train(resume_from_checkpoint=checkpoint)
    if reporter.stopped:
        state = trainer.state
        raise Stopped(f"{config.output_dir} was stopped at step {state.global_step} of {state.max_steps}")
    on_main(lambda: checkpoints.refuse_without_a_step(trainer, checkpoint))
    _say_if_early(config, trainer.state)
    if config.load_best_model_at_end:
        checkpoints.load_best(trainer)
    return round(time.perf_counter() - started, 1)


@contextmanager
def _alone(folder):
    """No other run in the folder, as long as it lasts; the main process sees to that for all."""
    with ExitStack() as held:
        if os.environ.get("RANK", "0") == "0":
            folder.mkdir(parents=True, exist_ok=True)
            held.enter_context(one_process(folder, "train"))
            remove_abandoned(folder)
        yield


def read_rows(config: RunConfig) -> "Dataset | IterableDataset":
    """All rows of the run's file, in whatever form they are, of the kind that its method takes, or their stream."""
    if config.streaming:
        from vlmhelpers.data.readers.streaming import read_stream

        return read_stream(config.dataset, config.image_root, **config.named_fields)
    from vlmhelpers.data.readers import recognition

    return recognition.read_rows(config.dataset, METHODS[config.method].rows, config.image_root, **config.named_fields)


def _read_results(output_dir):
    return json.loads((Path(output_dir) / RESULTS).read_bytes())


def _made_of(config, dataset, base):
    """What a finished run is recognized by. A CPU takes a tiny base in the place of a hub id."""
    from vlmhelpers.training.identity import inputs_identity

    return {"inputs": inputs_identity(config, dataset), "stand_in": _is_hub_id(config.model_id) and os.path.isdir(base)}


def _is_hub_id(model_id):
    return "/" in model_id and not os.path.isdir(model_id)


def _find_finished(config, accept_changes):
    """The result of the run where it is finished, whole and not changed; ValueError where it has been changed."""
    folder = Path(config.output_dir)
    try:
        results = _read_results(folder)
        result, made_of = RunResult.read(folder), results["made_of"]
        description = "adapter_config.json" if result.adapter else "config.json"
        json.loads((Path(result.folder) / description).read_bytes())
        is_whole = all(read_digest(folder / name) == expected for name, expected in results["digests"].items())
        if not is_whole or (made_of["stand_in"] and _has_gpu()):
            return None
        finished = f"{folder} is finished: {result.steps} steps on {result.rows['trained']} rows -> {result.folder}"
        before = dict(made_of["inputs"])
    except (*_MISSING, *_ODD):
        return None
    from vlmhelpers.training.identity import inputs_identity, refuse_changes

    try:
        now = inputs_identity(config, read_rows(config))
    except FileNotFoundError as error:
        print(f"{finished} (not compared with the data: {error})")
        return result
    # A setting that is younger than the run was as its default is.
    before = {name: value for name, value in _DEFAULTS.items() if name in now} | before
    now |= {name: before[name] for name, value in config.chosen.items() if value is None and name in before}
    changed = changed_settings(before, now)
    if all(name.startswith("version of ") for name in changed):
        print(finished)
        return result
    if not accept_changes:
        refuse_changes(folder, before, now)
    return None


def _digests(folder):
    """Those of what was trained and of the held-out rows, but of what save_adapter writes anew, or removes."""
    files = [
        path for name in (ADAPTER, MODEL, HELD_OUT) for path in sorted((folder / name).rglob("*")) if path.is_file()
    ]
    return {path.relative_to(folder).as_posix(): read_digest(path) for path in files if path.name not in _OF_ADAPTERS}


def _has_gpu():
    import torch

    return torch.cuda.is_available()


def _may_use_unsloth(backend):
    """With "auto" on one process only, and before transformers."""
    several = int(os.environ.get("WORLD_SIZE", 1)) > 1
    return backend == "unsloth" or (backend == "auto" and not several and "transformers" not in sys.modules)


def _add_sampler(config, trainer, rows, processor):
    """Lets the run show answers to its held-out rows while it is trained, where it can."""
    from vlmhelpers.training.sampled_answers import AnswerSampler

    if trainer.is_fsdp_enabled or config.method == "reward":
        sharded = "each GPU holds a part of the model"
        print(f"no answers are sampled: {sharded if trainer.is_fsdp_enabled else 'a reward model writes none'}")
        return
    held_out = _as_messages(rows.parts["validation" if config.validation_rows else "test"])
    held_out = held_out.select(range(min(config.sample_answers, len(held_out))))
    folder = Path(config.output_dir)
    trainer.add_callback(AnswerSampler(trainer, processor, held_out, folder, config.validated_every))


def _say_if_early(config, state):
    if config.early_stopping_patience and state.global_step < state.max_steps and state.is_world_process_zero:
        best, at = state.best_global_step, f"training ended early, at step {state.global_step} of {state.max_steps}"
        print(f"{at}: no validation {f'was better than that of step {best}' if best else 'gave a number'}")
        say(config.output_dir, event="early_stopped", step=state.global_step, max_steps=state.max_steps, best_step=best)


@contextmanager
def _start_of(config, trainer):
    """A folder with the adapter as it starts where its start changes the base, else None."""
    from vlmhelpers.common.files import temporary_folder

    if not config.changes_base:
        yield None
        return
    with temporary_folder() as folder:
        start = Path(folder) / "start"
        trainer.model.save_pretrained(start)
        yield start


def _save_trained(config, trainer, processor, start):
    """Writes what was trained, with the processor, to the folder that its kind has; the other kind's is removed."""
    from vlmhelpers.models.freezing import restore_dtypes
    from vlmhelpers.models.loading import save_processor

    name, other = (ADAPTER, MODEL) if config.trains_adapters else (MODEL, ADAPTER)
    if trainer.is_fsdp_enabled:  # the checkpoints are in pieces, what is left is whole
        trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
    with ExitStack() as held:  # of the main process
        folder = Path(config.output_dir)
        temporary = on_main(lambda: held.enter_context(atomic_folder(folder / name, replace=True)))
        if not config.trains_adapters and not trainer.is_fsdp_enabled:
            restore_dtypes(trainer.model)
        trainer.save_model(temporary)
        if trainer.is_world_process_zero():
            for file in temporary.glob("*/adapter_config.json"):  # a critic's, or a copy as the reference
                shutil.rmtree(file.parent)
            if start:
                _save_for_untouched_base(trainer, temporary, start)
            save_processor(processor, temporary, beside_model=not config.trains_adapters)
            shutil.rmtree(folder / other, ignore_errors=True)  # of a run with other settings
        trainer.accelerator.wait_for_everyone()


def _save_for_untouched_base(trainer, folder, start):
    """Writes the adapter as an ordinary one: what training has added, for the base as it was."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".* changes the base weights")  # while both adapters are there
        model.save_pretrained(folder, path_initial_model_for_weight_conversion=str(start))


def _save(config, trainer, seconds, rows, made_of):
    folder, state = Path(config.output_dir), trainer.state
    trained = folder / (ADAPTER if config.trains_adapters else MODEL)
    best = state.best_global_step if config.tracks_best else None
    result = RunResult(str(trained), state.global_step, seconds, rows.counts, state.log_history, best)
    if state.is_world_process_zero:
        if "test" in rows.parts:
            save_held_out(*(_as_messages(rows.parts[part]) for part in ("test", "train")), folder)
        else:
            shutil.rmtree(folder / HELD_OUT, ignore_errors=True)  # of a run with other settings
        config.save(folder / SETTINGS)
        values = asdict(result) | {"folder": trained.name, "made_of": made_of, "digests": _digests(folder)}
        with atomic_file(folder / RESULTS, encoding="utf-8") as file:  # last: from now on the run is finished
            json.dump(values, file, indent=1)
        print(f"{state.global_step} steps on {rows.counts['trained']} rows -> {trained}")
    trainer.accelerator.wait_for_everyone()
    return result


def _as_messages(dataset: "Dataset") -> "Dataset":
    """Rows of any kind as rows of messages; those that are such keep all their columns."""
    from vlmhelpers.data.schema import kind_of
    from vlmhelpers.data.turns import to_rows

    return dataset if kind_of(dataset.column_names) == "messages" else to_rows(dataset)


def _save_rejected(file, rows):
    if rows.report is None:  # not the main process
        return
    if rejected := rows.report.rejected:
        rows.report.save_rejected(file)
        print(f"{len(rejected)} of {rows.counts['read']} rows are left out: see {file}")
    else:
        file.unlink(missing_ok=True)


def _count_stream(config, trainer, stream, rows):
    """Adds to the counts of a stream what was read of it, and writes what was left out."""
    from accelerate.utils import gather_object

    from vlmhelpers.data.readers.streaming import save_left_out
    from vlmhelpers.training.checkpoints import rows_per_step

    left_out = dict(gather_object(list(stream.left_out.items())))
    trained, held = trainer.state.global_step * rows_per_step(trainer.args), config.test_rows + config.validation_rows
    rows.counts.update({"read": held + trained + len(left_out), "rejected": len(left_out), "trained": trained})
    file = Path(config.output_dir) / REJECTED
    if left_out and trainer.is_world_process_zero():
        save_left_out(left_out, file)
        print(f"{len(left_out)} rows of the stream are left out: see {file}")


def save_held_out(test: "Dataset", train: "Dataset | IterableDataset", output_dir: str | os.PathLike) -> None:
    """Writes the held-out rows, and the first 8 of `train` as examples for prompts, with their images."""
    from datasets import DatasetDict

    from vlmhelpers.data.rows import first_rows

    rows = DatasetDict(test=test, examples=first_rows(train, 8))
    with atomic_folder(Path(output_dir) / HELD_OUT, replace=True) as temporary:
        rows.save_to_disk(temporary, num_shards=dict.fromkeys(rows, 1))  # else rejected rows' images are sized, too


def load_held_out(output_dir: str | os.PathLike) -> "DatasetDict":
    """What `save_held_out` wrote, as `test` and `examples`. Raises FileNotFoundError for a run without `test_rows`."""
    from datasets import load_from_disk

    folder = Path(output_dir) / HELD_OUT
    remove_abandoned(folder.parent, folder.name)  # puts back what a killed process was about to replace
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not there: train with test_rows, or call save_held_out")
    return load_from_disk(folder)
