"""One training run, from a JSONL file to an adapter, and what it leaves behind."""

# Imports nothing heavy: notebook_launcher does not fork after bitsandbytes, and Unsloth has to precede transformers.

import json
import os
import shutil
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vlmhelpers.common.distributed import only_main_prints
from vlmhelpers.common.environment import quiet
from vlmhelpers.common.files import atomic_file, atomic_folder
from vlmhelpers.models.backends import use_unsloth
from vlmhelpers.training.config import ADAPTER, HELD_OUT, RESULTS, SETTINGS, RunConfig

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict


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
        values = json.loads((Path(output_dir) / RESULTS).read_text(encoding="utf-8"))
        return cls(str(Path(output_dir) / ADAPTER), **values)


def train(config: RunConfig) -> RunResult:
    """Trains adapters as a `RunConfig` says; after an interruption, goes on from the last complete checkpoint.

    Writes to `config.output_dir` the folders adapter and held_out (with `test_rows`), rejected.csv, run_config.yaml,
    results.json and checkpoints. Works on several processes, by `accelerate.notebook_launcher(train, (config,))` or
    `accelerate launch -m vlmhelpers train CONFIG`: with configs/ddp.yaml each GPU holds the model, with
    configs/fsdp.yaml a part (FSDP2); both ran on CPUs only. Raises ValueError for wrong settings and without rows.
    """
    with only_main_prints():
        if _may_use_unsloth(config.backend):
            use_unsloth()
        quiet()
        from vlmhelpers.training import checkpoints, pipeline

        args = pipeline.training_arguments(config)
        rows, counts = pipeline.load_rows(config)
        trainer = pipeline.make_trainer(config, args, rows["train"])
        started = time.perf_counter()
        trainer.train(resume_from_checkpoint=checkpoints.resume_from(trainer))
        return _save(config, trainer, round(time.perf_counter() - started, 1), rows, counts)


def _may_use_unsloth(backend):
    """With "auto" on one process only, and before transformers."""
    several = int(os.environ.get("WORLD_SIZE", 1)) > 1
    return backend == "unsloth" or (backend == "auto" and not several and "transformers" not in sys.modules)


def _save(config, trainer, seconds, rows, counts):
    folder, state = Path(config.output_dir), trainer.state
    if trainer.is_fsdp_enabled:  # the checkpoints are in pieces, the adapter is whole
        trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
    trainer.save_model(folder / ADAPTER)
    result = RunResult(str(folder / ADAPTER), state.global_step, seconds, counts, state.log_history)
    if state.is_world_process_zero:
        trainer.processing_class.save_pretrained(folder / ADAPTER)
        if "test" in rows:
            save_held_out(rows["test"], rows["train"], folder)
        config.save(folder / SETTINGS)
        with atomic_file(folder / RESULTS, encoding="utf-8") as file:
            json.dump({name: value for name, value in asdict(result).items() if name != "adapter"}, file, indent=1)
        print(f"{state.global_step} steps on {counts['trained']} rows -> {folder / ADAPTER}")
    trainer.accelerator.wait_for_everyone()
    return result


def save_held_out(test: "Dataset", train: "Dataset", output_dir: str | os.PathLike) -> None:
    """Writes the held-out rows, and the first 8 of `train` as examples for prompts, with their images."""
    from datasets import DatasetDict

    folder = Path(output_dir) / HELD_OUT
    shutil.rmtree(folder, ignore_errors=True)
    rows = DatasetDict(test=test, examples=train.select(range(min(8, len(train)))))
    with atomic_folder(folder) as temporary:
        rows.save_to_disk(temporary, num_shards=dict.fromkeys(rows, 1))  # else rejected rows' images are sized, too


def load_held_out(output_dir: str | os.PathLike) -> "DatasetDict":
    """What `save_held_out` wrote, as `test` and `examples`. Raises FileNotFoundError for a run without `test_rows`."""
    from datasets import load_from_disk

    folder = Path(output_dir) / HELD_OUT
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not there: train with test_rows, or call save_held_out")
    return load_from_disk(folder)
