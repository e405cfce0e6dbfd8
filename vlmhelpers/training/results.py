"""What a run leaves in its folder, besides checkpoints."""

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vlmhelpers.common.files import atomic_file, atomic_folder

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

ADAPTER, RESULTS, SETTINGS, REJECTED, HELD_OUT = (
    "adapter",
    "results.json",
    "run_config.yaml",
    "rejected.csv",
    "held_out",
)


@dataclass(frozen=True)
class RunResult:
    """What a run ended with."""

    adapter: str  # the folder of the adapter and of the processor's files
    steps: int  # optimizer steps, all in all
    seconds: float  # of training, since the last time that the run was started
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

    def save(self, output_dir: str | os.PathLike) -> None:
        values = {name: value for name, value in asdict(self).items() if name != "adapter"}
        with atomic_file(Path(output_dir) / RESULTS, encoding="utf-8") as file:
            json.dump(values, file, indent=1)


def save_held_out(test: "Dataset", train: "Dataset", output_dir: str | os.PathLike) -> None:
    """Writes the held-out rows, and the first 8 of `train` as examples for prompts, to `output_dir`.

    The images are inside, so that the folder can be moved. What an earlier run has held out is replaced.
    """
    from datasets import DatasetDict

    folder = Path(output_dir) / HELD_OUT
    shutil.rmtree(folder, ignore_errors=True)
    rows = DatasetDict(test=test, examples=train.select(range(min(8, len(train)))))
    with atomic_folder(folder) as temporary:
        rows.save_to_disk(temporary, num_shards=dict.fromkeys(rows, 1))  # else rejected rows' images are sized, too


def load_held_out(output_dir: str | os.PathLike) -> "DatasetDict":
    """The rows that a run has held out, as `test`, and a few that it has trained on, as `examples`.

    Raises FileNotFoundError where the run had no `test_rows`.
    """
    from datasets import load_from_disk

    folder = Path(output_dir) / HELD_OUT
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not there: train with test_rows, or call save_held_out")
    return load_from_disk(folder)
