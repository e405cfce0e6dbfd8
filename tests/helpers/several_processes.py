"""`python -m vlmhelpers` for test_run.py, on CPU processes: `several_processes.py [shard|die] COMMAND...`.

"die": the second process is killed (SIGKILL) once the fourth step is done. "shard": FSDP, which accelerate keeps from
CPU processes, though torch can do it there; the type of the processes is what it decides by.
"""

import os
import sys

from accelerate import PartialState
from accelerate.utils import DistributedType
from interrupted_run import DieAfter

from vlmhelpers.__main__ import main
from vlmhelpers.training import callbacks as training
from vlmhelpers.training import pipeline as trainer


def let_cpus_shard():
    start = PartialState.__init__

    def pretend(self, *args, **kwargs):
        start(self, *args, **kwargs)
        if self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = DistributedType.MULTI_GPU

    PartialState.__init__ = pretend


def let_one_die():
    def watch_and_die(made):
        training.watch(made)
        if os.environ["RANK"] == "1":
            made.add_callback(DieAfter(4))

    trainer.watch = watch_and_die


if __name__ == "__main__":
    how, *command = sys.argv[1:]
    {"shard": let_cpus_shard, "die": let_one_die}[how]()
    sys.exit(main(command))
