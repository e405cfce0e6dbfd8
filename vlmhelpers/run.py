"""One training run as a function: from a JSONL file to an adapter, on one process or several."""

import json
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from vlmhelpers.backend import use_unsloth
from vlmhelpers.environment import quiet
from vlmhelpers.files import whole_file
from vlmhelpers.processes import only_main_prints

ADAPTER, RESULTS, CONFIG, REJECTED = "adapter", "results.json", "run_config.yaml", "rejected.csv"

# Nothing heavy is imported before `train` runs: notebook_launcher forks, and refuses to do so once bitsandbytes is
# loaded, and Unsloth has to come before transformers.


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
        with whole_file(Path(output_dir) / RESULTS, encoding="utf-8") as file:
            json.dump(values, file, indent=1)


def train(config):
    """Trains adapters as a `RunConfig` says, and returns a `RunResult`.

    Reads and checks the rows of `config.dataset`; the rejected ones are left out and listed in rejected.csv. Writes
    the folder adapter (with the processor's files), run_config.yaml and results.json to `config.output_dir`, besides
    the checkpoints. After an interruption the same call goes on from the last whole checkpoint.

    Works on several processes: `accelerate.notebook_launcher(train, (config,), num_processes=2)` in a notebook that
    has not used the GPU yet, or `accelerate launch --num_processes 2 -m vlmhelpers train CONFIG`. The rows of a step
    are then those of one process whose batch is as large as all of theirs together, and so are the loss and the
    adapters, up to rounding. Only the main process prints and writes. With configs/ddp.yaml each GPU holds the model,
    with configs/fsdp.yaml a part of it (FSDP2). Both were run on CPU processes, not on several GPUs.

    Raises ValueError for what is wrong with the settings or the data, such as no row that can be used.
    """
    with only_main_prints():
        if _may_use_unsloth(config.backend):
            use_unsloth()
        quiet()
        from vlmhelpers.trainer import run

        return run(config)


def _may_use_unsloth(backend):
    """Whether to import Unsloth: with "auto" on one process only, and only while it is not too late for it."""
    several = int(os.environ.get("WORLD_SIZE", 1)) > 1
    return backend == "unsloth" or (backend == "auto" and not several and "transformers" not in sys.modules)
