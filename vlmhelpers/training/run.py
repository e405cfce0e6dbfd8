"""One training run, from a JSONL file to an adapter, and what it leaves behind."""

# Imports nothing heavy: notebook_launcher does not fork after bitsandbytes, and Unsloth has to precede transformers.

import json
import os
import shutil
import sys
import time
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
from vlmhelpers.training.config import ADAPTER, HELD_OUT, REJECTED, RESULTS, SETTINGS, RunConfig

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict


_OF_ADAPTERS = ("README.md", "adapter_config.json", "training_args.bin")
_MISSING = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
_ODD = (ValueError, TypeError, KeyError, AttributeError)  # for results of another version, or of any content


@dataclass(frozen=True)
class RunResult:
    """What a run ended with."""

    adapter: str  # its folder
    steps: int  # optimizer steps, all in all
    seconds: float  # of training, since the run was last started
    rows: dict  # how many were read, rejected, trained on, and held out as test
    history: list  # what was logged: dicts with `step`, `epoch`, `loss` and more

    @property
    def held_out(self) -> str | None:
        """The folder of the held-out rows, which `load_held_out` opens; None for a run without `test_rows`."""
        return str(Path(self.adapter).with_name(HELD_OUT)) if self.rows["test"] else None

    @classmethod
    def read(cls, output_dir: str | os.PathLike) -> "RunResult":
        """The result that a finished run has written to its `output_dir`. Raises FileNotFoundError without one."""
        values = _read_results(output_dir)
        return cls(str(Path(output_dir) / ADAPTER), *(values[field.name] for field in fields(cls)[1:]))


def train(config: RunConfig, accept_changes: bool = False) -> RunResult:
    """Trains adapters as a `RunConfig` says; after an interruption, goes on from the last whole checkpoint.

    Writes to `config.output_dir` the folders adapter and held_out (with `test_rows`), rejected.csv, run_config.yaml,
    results.json and checkpoints. A run that is finished says so, and changes nothing. Works on several processes, by
    `accelerate.notebook_launcher(train, (config,))` or `accelerate launch -m vlmhelpers train CONFIG`: with
    configs/ddp.yaml each GPU holds the model, with configs/fsdp.yaml a part (FSDP2); both ran on CPUs only.

    Raises ValueError for wrong settings, without rows and, unless `accept_changes`, where the run in that folder was
    begun with other settings, data, weights or versions, which it names; BlockingIOError where another process trains
    there; OSError where the disk is full.
    """
    with only_main_prints(), _alone(Path(config.output_dir)):
        alone = int(os.environ.get("WORLD_SIZE", 1)) == 1
        if alone and (finished := _find_finished(config, accept_changes)):
            return finished
        if _may_use_unsloth(config.backend):
            use_unsloth()
        quiet()
        from vlmhelpers.models.loading import choose_model
        from vlmhelpers.training import checkpoints, pipeline

        pipeline.training_arguments(config)  # joins the processes
        if not alone and (finished := on_main(lambda: _find_finished(config, accept_changes))):
            return finished
        dataset = _read_rows(config)
        rows = pipeline.load_rows(config, dataset)
        model_id = choose_model(config.model_id)
        config = pipeline.fill_in(config, model_id, rows.parts)
        trainer = pipeline.make_trainer(config, model_id, rows.parts)
        checkpoint = checkpoints.resume_from(trainer, accept_changes)
        _save_rejected(Path(config.output_dir) / REJECTED, rows)
        made_of = on_main(lambda: _made_of(config, dataset, trainer.model.config._name_or_path))
        started = time.perf_counter()
        trainer.train(resume_from_checkpoint=checkpoint)
        on_main(lambda: checkpoints.refuse_without_a_step(trainer, checkpoint))
        seconds = round(time.perf_counter() - started, 1)
        with name_full_disk(Path(config.output_dir) / ADAPTER):
            return _save(config, trainer, seconds, rows, made_of)


@contextmanager
def _alone(folder):
    """No other run in the folder, as long as it lasts; the main process sees to that for all."""
    with ExitStack() as held:
        if os.environ.get("RANK", "0") == "0":
            folder.mkdir(parents=True, exist_ok=True)
            held.enter_context(one_process(folder, "train"))
            remove_abandoned(folder)
        yield


def _read_rows(config):
    """All rows of the run's file."""
    from vlmhelpers.data.readers.jsonl_reader import read_jsonl

    names = config.text_field, config.image_field, config.response_field
    return read_jsonl(config.dataset, config.image_root, *names)


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
        json.loads((folder / ADAPTER / "adapter_config.json").read_bytes())
        is_whole = all(read_digest(folder / name) == expected for name, expected in results["digests"].items())
        if not is_whole or (made_of["stand_in"] and _has_gpu()):
            return None
        finished = f"{folder} is finished: {result.steps} steps on {result.rows['trained']} rows -> {result.adapter}"
        before = dict(made_of["inputs"])
    except (*_MISSING, *_ODD):
        return None
    from vlmhelpers.training.identity import inputs_identity, refuse_changes

    try:
        now = inputs_identity(config, _read_rows(config))
    except FileNotFoundError as error:
        print(f"{finished} (not compared with the data: {error})")
        return result
    now |= {name: before[name] for name, value in config.chosen.items() if value is None and name in before}
    changed = changed_settings(before, now)
    if all(name.startswith("version of ") for name in changed):
        print(finished)
        return result
    if not accept_changes:
        refuse_changes(folder, before, now)
    return None


def _digests(folder):
    """Those of the adapter and of the held-out rows, but of what save_adapter writes anew, or removes."""
    files = [path for name in (ADAPTER, HELD_OUT) for path in sorted((folder / name).rglob("*")) if path.is_file()]
    return {path.relative_to(folder).as_posix(): read_digest(path) for path in files if path.name not in _OF_ADAPTERS}


def _has_gpu():
    import torch

    return torch.cuda.is_available()


def _may_use_unsloth(backend):
    """With "auto" on one process only, and before transformers."""
    several = int(os.environ.get("WORLD_SIZE", 1)) > 1
    return backend == "unsloth" or (backend == "auto" and not several and "transformers" not in sys.modules)


def _save(config, trainer, seconds, rows, made_of):
    from vlmhelpers.models.loading import save_processor

    folder, state = Path(config.output_dir), trainer.state
    if trainer.is_fsdp_enabled:  # the checkpoints are in pieces, the adapter is whole
        trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
    with ExitStack() as held:  # of the main process
        temporary = on_main(lambda: held.enter_context(atomic_folder(folder / ADAPTER, replace=True)))
        trainer.save_model(temporary)
        if state.is_world_process_zero:
            save_processor(trainer.processing_class, temporary)
        trainer.accelerator.wait_for_everyone()
    result = RunResult(str(folder / ADAPTER), state.global_step, seconds, rows.counts, state.log_history)
    if state.is_world_process_zero:
        if "test" in rows.parts:
            save_held_out(rows.parts["test"], rows.parts["train"], folder)
        else:
            shutil.rmtree(folder / HELD_OUT, ignore_errors=True)  # of a run with other settings
        config.save(folder / SETTINGS)
        values = {name: value for name, value in asdict(result).items() if name != "adapter"}
        with atomic_file(folder / RESULTS, encoding="utf-8") as file:  # last: from now on the run is finished
            json.dump(values | {"made_of": made_of, "digests": _digests(folder)}, file, indent=1)
        print(f"{state.global_step} steps on {rows.counts['trained']} rows -> {folder / ADAPTER}")
    trainer.accelerator.wait_for_everyone()
    return result


def _save_rejected(file, rows):
    if rows.report is None:  # not the main process
        return
    if rejected := rows.report.rejected:
        rows.report.save_rejected(file)
        print(f"{len(rejected)} of {rows.counts['read']} rows are left out: see {file}")
    else:
        file.unlink(missing_ok=True)


def save_held_out(test: "Dataset", train: "Dataset", output_dir: str | os.PathLike) -> None:
    """Writes the held-out rows, and the first 8 of `train` as examples for prompts, with their images."""
    from datasets import DatasetDict

    rows = DatasetDict(test=test, examples=train.select(range(min(8, len(train)))))
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
