"""Functions in processes of their own, which cost no import: they are forked from one that has imported everything.

`call` runs a function of a module in one process or several; the others are what test_processes.py calls.
"""

import multiprocessing
import os
import signal
import socket
import sys
from multiprocessing.connection import wait

import torch
from accelerate import PartialState
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType
from accelerate.utils.launch import prepare_multi_gpu_env
from interrupted_run import DieAfter

from vlmhelpers.cli import main
from vlmhelpers.common.distributed import on_main
from vlmhelpers.inference.answer_log import AnswerLog
from vlmhelpers.training import callbacks, pipeline
from vlmhelpers.training.run import train

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["vlmhelpers.training.pipeline"])


def call(file, function, *arguments, processes=1, environment=None):
    """Calls `function(*arguments)` in new processes at once; one that fails ends the others.

    Returns (their exit codes, what they printed), which goes to `file`. `environment`: variables for all of them.
    """
    ranks = _ranks(processes) if processes > 1 else [{}]
    started = [
        _FORKS.Process(target=_call, args=(file, (environment or {}) | rank, function, arguments)) for rank in ranks
    ]
    for process in started:
        process.start()
    while waited_for := [process.sentinel for process in started if process.exitcode is None]:
        if not wait(waited_for, timeout=300) or any(process.exitcode for process in started):
            for process in started:
                process.kill()
    return [process.exitcode for process in started], file.read_text()


def _ranks(processes):
    """For each process what torchrun tells it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    same = {"WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ranks = [same | {"RANK": rank, "LOCAL_RANK": rank} for rank in range(processes)]
    return [{name: str(value) for name, value in rank.items()} for rank in ranks]


def _call(file, environment, function, arguments):
    os.environ.update(environment)
    torch.set_num_threads(1)
    with open(file, "a", buffering=1) as sys.stdout:
        sys.stderr = sys.stdout
        function(*arguments)


def launch_environment(config_file):
    """The variables that `accelerate launch --config_file` sets for its processes."""
    arguments = launch_command_parser().parse_args(["--config_file", str(config_file), "script.py"])
    found = prepare_multi_gpu_env(_validate_launch_command(arguments)[0])
    return {name: value for name, value in found.items() if os.environ.get(name) != value}


def check_on_main(folder):
    """Leaves a file of its rank where `on_main` gives and raises what the main process gives and raises."""
    rank = PartialState(cpu=True).process_index
    assert on_main(lambda: {"said by": rank}) == {"said by": 0}
    try:
        on_main(lambda: 1 / (rank - 0))
    except ZeroDivisionError:
        (folder / str(rank)).touch()


def run_command(folder, arguments, dies_after=None):
    """Runs a command in a folder; the last process is killed (SIGKILL) when it has saved answers that many times."""
    os.chdir(folder)
    if dies_after and int(os.environ["RANK"]) == int(os.environ["WORLD_SIZE"]) - 1:
        append, saved = AnswerLog.append, []

        def append_and_die(log, answers):
            append(log, answers)
            saved.append(answers)
            if len(saved) == dies_after:
                os.kill(os.getpid(), signal.SIGKILL)

        AnswerLog.append = append_and_die
    sys.exit(main(arguments))


def train_and_die(config):
    """Trains, and kills the second process (SIGKILL) once the fourth step is done."""

    def watch_and_die(trainer):
        callbacks.watch(trainer)
        if os.environ["RANK"] == "1":
            trainer.add_callback(DieAfter(4))

    pipeline.watch = watch_and_die
    train(config)


def _keep_trainers():
    """A list that gets every trainer of the runs to come."""
    trainers = []

    def watch_and_keep(trainer):
        callbacks.watch(trainer)
        trainers.append(trainer)

    pipeline.watch = watch_and_keep
    return trainers


def train_and_keep(configs, folder):
    """Trains one run after the other, and leaves the weights of each, by name, in a file of the process's rank."""
    trainers = _keep_trainers()
    for config in configs:
        train(config)
    weights = [{name: p.detach() for name, p in trainer.model.named_parameters()} for trainer in trainers]
    torch.save(weights, folder / f"{os.environ['RANK']}.pt")


def train_sharded_in_4_bits(config, folder):
    """Trains as train_sharded does, and leaves the share of the 4-bit weights that this process holds."""
    trainers = _keep_trainers()
    train_sharded(config)
    packed = [p for name, p in trainers[0].model.named_parameters() if name.endswith("proj.base_layer.weight")]
    share = sum(p.to_local().numel() for p in packed) / sum(p.numel() for p in packed)
    (folder / os.environ["RANK"]).write_text(f"{share} {trainers[0].model.is_loaded_in_4bit}")


def train_sharded(config):
    """Trains with FSDP, which accelerate keeps from CPU processes, though torch can do it there.

    The type of the processes is what accelerate decides by.
    """
    start = PartialState.__init__

    def pretend(self, *args, **kwargs):
        start(self, *args, **kwargs)
        if self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = DistributedType.MULTI_GPU

    PartialState.__init__ = pretend
    train(config)
