"""One training run as a function: from a JSONL file to an adapter, on one process or several."""

import os
import sys

from vlmhelpers.common.distributed import only_main_prints
from vlmhelpers.common.environment import quiet
from vlmhelpers.models.backends import use_unsloth
from vlmhelpers.training.config import RunConfig
from vlmhelpers.training.results import RunResult

# Nothing heavy is imported before `train` runs: notebook_launcher forks, and refuses to do so once bitsandbytes is
# loaded, and Unsloth has to come before transformers.


def train(config: RunConfig) -> RunResult:
    """Trains adapters as a `RunConfig` says, and returns a `RunResult`.

    Reads and checks the rows of `config.dataset`; the rejected ones are left out and listed in rejected.csv. Writes
    the folder adapter (with the processor's files), held_out (with `test_rows`; see `load_held_out`), run_config.yaml
    and results.json to `config.output_dir`, besides the checkpoints. After an interruption the same call goes on from
    the last complete checkpoint.

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
        from vlmhelpers.training.pipeline import run

        return run(config)


def _may_use_unsloth(backend):
    """Whether to import Unsloth: with "auto" on one process only, and only while it is not too late for it."""
    several = int(os.environ.get("WORLD_SIZE", 1)) > 1
    return backend == "unsloth" or (backend == "auto" and not several and "transformers" not in sys.modules)
