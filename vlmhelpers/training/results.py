"""What a run leaves in its folder."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from vlmhelpers.common.files import atomic_file

ADAPTER, RESULTS, CONFIG, REJECTED = "adapter", "results.json", "run_config.yaml", "rejected.csv"


@dataclass(frozen=True)
class RunResult:
    """What a run ended with."""

    adapter: str  # the folder of the adapter and of the processor's files
    steps: int  # optimizer steps, all in all
    seconds: float  # of training, since the last time that the run was started
    rows: dict  # how many were read, rejected, trained on, and held out as test
    history: list  # what was logged: dicts with `step`, `epoch`, `loss` and more

    @classmethod
    def read(cls, output_dir):
        """The result that a finished run has written to its `output_dir`. Raises FileNotFoundError without one."""
        values = json.loads((Path(output_dir) / RESULTS).read_text(encoding="utf-8"))
        return cls(str(Path(output_dir) / ADAPTER), **values)

    def save(self, output_dir):
        values = {name: value for name, value in asdict(self).items() if name != "adapter"}
        with atomic_file(Path(output_dir) / RESULTS, encoding="utf-8") as file:
            json.dump(values, file, indent=1)
