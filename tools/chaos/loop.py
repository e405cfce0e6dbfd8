"""Try after try, and the table of them."""

import importlib
import itertools
import os
import pkgutil
import random
import shutil
import subprocess
import sys
import time
import traceback
from collections import Counter
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import torch

import vlmhelpers
from chaos.attacks import ATTACKS, Failed, Try, mount, undisturbed
from chaos.jobs import make_jobs, make_source, serve

ROOT = Path(__file__).resolve().parents[2]
KEPT = ROOT / "outputs" / "chaos"  # the folders of failed tries


def attack_all(options, scratch: Path, tmpfs: bool) -> int:
    """Prints a line for each failure and, at the end, a table. Returns 1 where something failed."""
    torch.set_num_threads(1)
    for module in pkgutil.walk_packages(vlmhelpers.__path__, "vlmhelpers."):
        importlib.import_module(module.name)  # once: each start of a job is a fork of this process
    importlib.import_module("tabulate")  # torch does when a process ends: no limit should hit that
    url, forget = serve()
    source = scratch / "source"
    _in_child(make_source, source, url)
    plain, tries, survived = {}, Counter(), Counter()
    end = time.monotonic() + 60 * options.minutes
    print(f"seed {options.seed}; disks are {'small tmpfs' if tmpfs else 'limits on the size of a file'}", flush=True)
    for job, name, number in chosen(options, make_jobs(source, url)):
        if not options.tries and time.monotonic() > end:
            break
        if job.name not in plain:
            with folder_of_try(scratch, tmpfs) as base:
                forget()
                plain[job.name] = _undisturbed(Try(job, base, tmpfs, random.Random(0)))
        if plain[job.name] is None:
            continue
        with folder_of_try(scratch, tmpfs) as base:
            forget()
            draw = random.Random(f"{options.seed} {job.name} {name} {number}")
            trial = Try(job, base, tmpfs, draw, plain[job.name])
            failure = failure_of(trial, name)
            tries[job.name, name] += 1
            survived[job.name, name] += failure is None
            if failure:
                report(trial, failure, name, options.seed, number)
    print(f"\n{table(tries, survived)}\n\n{survived.total()} of {tries.total()} tries survived")
    return int(survived.total() < tries.total() or None in plain.values())


def _undisturbed(trial):
    try:
        return undisturbed(trial)
    except Failed as failure:
        print(f"\n{trial.job.name}: {failure}", flush=True)


def _in_child(run, *arguments):
    if pid := os.fork():
        if os.waitpid(pid, 0)[1]:
            sys.exit("the jobs could not be prepared")
        return
    code = 1
    try:
        with open(os.devnull, "w") as nothing, redirect_stdout(nothing), redirect_stderr(nothing):
            run(*arguments)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def chosen(options, jobs):
    """Yields (job, attack, number of the try): the jobs in turn, each with all attacks in a random order."""
    job_name, _, attack_name = options.only.partition("/")
    jobs = [job for job in jobs if job.name.startswith(job_name)]
    attacks = [name for name in ATTACKS if name.startswith(attack_name)]
    attacks = [attack_name] if attack_name in ATTACKS else attacks  # "KILL" begins another's name, too
    if not jobs or not attacks:
        sys.exit(f"--only {options.only}: there is no such job or attack")
    tries = _in_turn(jobs, attacks, options.seed, [options.number] if options.number is not None else itertools.count())
    yield from itertools.islice(tries, options.tries and options.tries * len(jobs))


def _in_turn(jobs, attacks, seed, numbers):
    for number in numbers:
        orders = [random.Random(f"{seed} {job.name} {number}").sample(attacks, len(attacks)) for job in jobs]
        for names in zip(*orders, strict=True):
            yield from ((job, name, number) for job, name in zip(jobs, names, strict=True))


@contextmanager
def folder_of_try(scratch: Path, tmpfs: bool):
    """A new folder, on a tmpfs where that can be."""
    base = scratch / "try"
    base.mkdir()
    if tmpfs:
        mount("-t", "tmpfs", "-o", "size=1g", "tmpfs", base)
    try:
        yield base
    finally:
        if tmpfs:
            subprocess.run(["umount", base], check=True)
        shutil.rmtree(base)


def failure_of(trial: Try, name: str) -> str | None:
    """What was not kept in one try, in a sentence."""
    try:
        trial.prepare()
        ATTACKS[name](trial)
        trial.finish()
    except Failed as failure:
        return str(failure)


def report(trial: Try, failure: str, name: str, seed: int, number: int) -> None:
    """Keeps the folder of a failed try, and says how to repeat it."""
    job = trial.job.name
    folder = KEPT / f"{job} {name} {seed} {number}".replace(",", "").replace(" ", "-")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(trial.base, folder, symlinks=True)
    (folder / "log.txt").write_text("\n".join(trial.log))
    print(f"\n{job} / {name}: {failure}\n  its folder: {folder.relative_to(ROOT)}")
    print(f"""  again: make chaos ARGS='--seed {seed} --only "{job}/{name}" --number {number}'""", flush=True)


def table(tries: Counter, survived: Counter) -> str:
    """Markdown: of how many tries of each job under each attack it survived how many."""
    names = [name for name in ATTACKS if any(name == attack for _, attack in tries)]
    lines = [["job", *names], ["---"] * (len(names) + 1)]
    for job in dict.fromkeys(job for job, _ in tries):
        counts = ((survived[job, name], tries[job, name]) for name in names)
        lines.append([job, *(f"{kept} of {all_}" if all_ else "" for kept, all_ in counts)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
