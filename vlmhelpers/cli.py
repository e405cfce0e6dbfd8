"""The command line, `python -m vlmhelpers`: exit code 1 means unusable rows, 2 that the command could not work.

130 is Ctrl-C, 143 SIGTERM.
"""

import argparse
import os
import signal
import sys
import time
import traceback
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from itertools import combinations
from pathlib import Path

import vlmhelpers as vlm
from vlmhelpers.common.printable import PrintableStream, one_line
from vlmhelpers.training.background import TrainingRun, wait_for
from vlmhelpers.training.methods import catalog
from vlmhelpers.training.progress import STOP, Stopped, reported, say

_COMMANDS = {
    "alpaca": "convert Alpaca JSON or JSONL to JSONL of messages",
    "csv": "convert a CSV of image paths, questions and answers to JSONL of messages",
    "jsonl": "convert JSONL of image paths, questions and answers, or of conversations, to JSONL of messages",
    "products": "convert a CSV or parquet table of products to JSONL of messages, and download their images",
    "check": "check every row and image of a file of answers, pairs, rated answers or prompts, and say what is wrong",
    "sample": "write a JSONL file of drawn products and questions about them, to try the rest with",
    "train": "train a model as a JSON or YAML file says; the same command goes on after an interruption",
    "start": "the same in the background, where it goes on when this terminal is closed",
    "status": "say in a line what each run is doing",
    "stop": "let runs save a checkpoint and end; `resume` goes on from there",
    "resume": "go on in the background with runs that were stopped, or were lost",
}
_CONVERTER = "-i --input, -o --output, --rejected"
_FIELDS = "--image-root, --image-field, --text-field, --response-field"
_DOWNLOADS = "--cache-dir, --private-hosts"
_TAKES = {  # command -> its arguments; a converter's are those of its reader
    "alpaca": f"{_CONVERTER}, --instruction-field, --input-field, --output-field",
    "csv": f"{_CONVERTER}, {_FIELDS}",
    "jsonl": f"{_CONVERTER}, {_FIELDS}, --download, {_DOWNLOADS}",
    "products": f"{_CONVERTER}, --image-root, --image-field, --instruction, --response, {_DOWNLOADS}",
    "check": "file, --image-root, --rejected",
    "sample": "-o --output, --num-examples, --seed, --answers, --size, --force",
    "train": "config, --method, --set, --accept-changes, --after",
    "start": "config, --method, --set, --accept-changes, --after",
    "status": "runs",
    "stop": "runs, --now",
    "resume": "runs, --accept-changes",
}
_FILE, _FOLDER, _NUMBER = {"metavar": "FILE"}, {"metavar": "FOLDER"}, {"metavar": "N", "type": int}
_ARGUMENTS = {  # for argparse's add_argument; the names of fields are not listed
    "file": {"help": "CSV, JSON, JSONL, or parquet of products"},
    "config": {"metavar": "CONFIG", "help": ".json or .yaml file of the settings below"},
    "-i --input": _FILE | {"required": True},
    "-o --output": _FILE | {"required": True, "help": "the JSONL file to write; images of a sample go beside it"},
    "--rejected": _FILE | {"help": "save the rejected rows to this CSV; a converter then writes the others"},
    "--image-root": _FOLDER | {"help": "where image paths start (default: the file's folder)"},
    "--instruction": {"metavar": "TEXT", "help": "what the user asks in every row"},
    "--response": {"metavar": "TEMPLATE", "help": "the answer, with columns in braces, like 'Product: {title}'"},
    "--download": {"action": "store_true", "help": "download the images that are named by URLs"},
    "--cache-dir": _FOLDER | {"help": "where downloaded images are kept (default: in the user's cache)"},
    "--private-hosts": {"nargs": "+", "metavar": "HOST", "help": "hosts allowed in a private network"},
    "--num-examples": _NUMBER | {"help": "default: 10"},
    "--seed": _NUMBER | {"help": "other seeds give other examples (default: 0)"},
    "--answers": {
        "choices": ["words", "json", "pairs", "untrue_pairs"],
        "help": "words, the default: several questions in turn; json: one; pairs: a better and a worse answer",
    },
    "--size": _NUMBER | {"help": "pixels of an image's side (default: 96)"},
    "--force": {"action": "store_true", "help": "overwrite files that are there with other content"},
    "--accept-changes": {"action": "store_true", "help": "go on with a run although what it is made of has changed"},
    "--method": {"metavar": "NAME", "help": "how to train: sft, dpo, ...; the same as --set method=NAME"},
    "--after": _FOLDER | {"nargs": "+", "help": "wait for the runs in these folders, then begin"},
    "runs": {"metavar": "FOLDER", "nargs": "+", "help": "the output_dir of a run"},
    "--now": {"action": "store_true", "help": "end them at once; what came after the last checkpoint is lost"},
    "--set": {"dest": "changes", "nargs": "+", "action": "extend", "metavar": "NAME=VALUE"},
}


def main(arguments: list[str] | None = None) -> int:
    """Runs one command, by default that of sys.argv, and returns its exit code. All that it prints is printable."""
    out, err = (stream and PrintableStream(stream) for stream in (sys.stdout, sys.stderr))
    with redirect_stdout(out), redirect_stderr(err):
        try:
            return _run(arguments)
        except (ValueError, OSError) as error:
            print(f"vlmhelpers: {one_line(str(error))}", file=sys.stderr)
            return 2
        except Exception as error:
            if _lacks_memory(error):
                print("vlmhelpers: no memory is left: end other programs, and start again", file=sys.stderr)
            else:
                traceback.print_exc()
            return 2
        except Stopped as stop:
            print(f"vlmhelpers: {stop}")
            return 0
        except KeyboardInterrupt as stop:
            terminated = isinstance(stop, Terminated)
            print(f"vlmhelpers: {'terminated' if terminated else 'interrupted'}", file=sys.stderr)
            return 143 if terminated else 130


_NO_MEMORY = ("can't start new thread", "could not create a primitive", "can't allocate memory")  # Python, torch


def _lacks_memory(error):
    """Whether memory was missing, even for a thread, here or in what led to it: pools of threads raise other errors."""
    while error is not None:
        if isinstance(error, MemoryError) or any(text in str(error) for text in _NO_MEMORY):
            return True
        error = error.__cause__ or error.__context__
    return False


class Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a command as Ctrl-C does."""


class Signals:
    """Handles SIGINT and SIGTERM while this process lives: the first one interrupts it, then it is left to clean up.

    One that follows within two seconds is ignored, as launchers pass signals on; a later one ends the process at once.
    """

    def __init__(self):
        self.process, self.first = os.getpid(), None
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) != signal.SIG_IGN:  # as nohup and a shell's background jobs set it
                signal.signal(number, self._handle)

    def _handle(self, number, frame):
        if os.getpid() != self.process:  # a forked worker
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        elif self.first is None:
            self.first = time.monotonic()
            raise Terminated if number == signal.SIGTERM else KeyboardInterrupt
        elif time.monotonic() > self.first + 2:
            os._exit(128 + number)

    def finish(self) -> None:
        """From now on nothing is interrupted: the process is about to end."""
        self.first = self.first or time.monotonic()


def _run(arguments):
    options = vars(_parser().parse_args(arguments))
    command = options.pop("command")
    runs = {"check": _check, "sample": _sample, "train": _train}
    runs |= {"start": _start, "status": _status, "stop": _stop, "resume": _resume}
    run = runs.get(command) or partial(_convert, command)
    return int(run(**options) or 0)


def _parser():
    parser = argparse.ArgumentParser("python -m vlmhelpers", description="Convert and check data, and train on it.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    # Without a default: the functions and the readers have those.
    texts = {"formatter_class": argparse.RawDescriptionHelpFormatter, "argument_default": argparse.SUPPRESS}
    for name, text in _COMMANDS.items():
        command = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.", **texts)
        command.epilog = _settings() if name in ("train", "start") else None
        for flags in _TAKES[name].split(", "):
            command.add_argument(*flags.split(), **_ARGUMENTS.get(flags, {"metavar": "NAME"}))
    return parser


def _settings():
    own = catalog.OWN_SETTINGS
    lines = ["settings, in CONFIG or by --set, whose paths start at the working directory:"]
    lines += [_setting(name) for name in vlm.RunConfig.described() if name not in own]
    lines.append("\nsettings that only some methods have:")
    lines += [_setting(name, f"; {', '.join(catalog.methods_with(name))}") for name in own]
    lines.append("\nmethods, and the rows that each takes:")
    lines += [f"  {name}: {method.rows}" for name, method in catalog.METHODS.items()]
    return "\n".join([*lines, "\non several GPUs: accelerate launch --num_processes 2 -m vlmhelpers train CONFIG"])


def _setting(name, note=""):
    setting = vlm.RunConfig.described()[name]
    default = "required" if setting.is_required else f"default {setting.default}"
    return f"  {name} ({setting.values}, {default}{note}): {setting.description}"


def _convert(reader, input, output, rejected=None, **arguments):
    from vlmhelpers.data.report import rejected_lines

    files = [file for file in (input, output, rejected) if file]
    same = any(os.path.samefile(*pair) for pair in combinations(filter(os.path.exists, files), 2))  # hard links, case
    if same or len(set(map(os.path.realpath, files))) < len(files):
        raise ValueError(f"two of {', '.join(files)} are the same file. Name another one to write to.")
    report = _report(getattr(vlm, f"read_{reader}")(input, **arguments))
    if report.rejected and not rejected:
        print(*rejected_lines(report.rejected, input), sep="\n", file=sys.stderr)
        print("Nothing was written. Correct these rows, or leave them out with --rejected FILE.", file=sys.stderr)
        return 1
    if rejected:
        report.save_rejected(rejected)
        print(f"{len(report.rejected)} rejected rows -> {rejected}", file=sys.stderr)
    if not len(report.dataset):
        print(f"{input} has no row that can be used. Nothing was written.", file=sys.stderr)
        return 1
    root, where = arguments.get("image_root", Path(input).parent), ""
    if reader == "products" or "download" in arguments:
        root = _root_of_images(report.dataset, root)
        where = f", image paths start at {root}"
    vlm.data.write_jsonl(report.dataset, output, root)
    print(f"{len(report.dataset)} rows -> {output}{where}")


def _report(dataset):
    """A Report by the reader and the messages alone; no image is opened."""
    from vlmhelpers.data.report import Finding, Report
    from vlmhelpers.data.rows import stream_plain_rows
    from vlmhelpers.data.rules import merge_problems, row_problems

    rejected = {}
    for index, row in enumerate(stream_plain_rows(dataset, [*vlm.data.FEATURES, "problem"], "checking")):
        if problems := row_problems(row):
            rejected["", index] = Finding("", index, *merge_problems(problems))
    return Report({"": dataset}, rejected)


def _root_of_images(dataset, root):
    """`root` where all images lie inside it, else the deepest folder that holds them all."""
    from vlmhelpers.data.rows import ImageRoot, stream_plain_rows

    paths = [image["path"] for row in stream_plain_rows(dataset, ["images"], "checking") for image in row["images"]]
    if os.path.isdir(root) and all(map(ImageRoot(root).relative, paths)):
        return root
    return os.path.commonpath([os.path.dirname(path) for path in paths])


def _check(file, image_root=None, rejected=None):
    dataset = _read_any(file, image_root)
    report = vlm.check_dataset(dataset)
    if (kind := vlm.data.kind_of(dataset.column_names)) != "messages":
        print(f"kind of rows: {kind}")
    print(report)
    if rejected:
        report.save_rejected(rejected)
    return bool(report.rejected)


_NOT_ALPACA = ("messages", "conversations", "image", "images")


def _read_any(path, image_root):
    from vlmhelpers.data.readers.csv_reader import read_table
    from vlmhelpers.data.readers.json_file import read_objects
    from vlmhelpers.data.readers.preference_reader import find_reader

    suffix = Path(path).suffix.lower()
    if suffix == ".parquet":
        return vlm.read_products(path, image_root)
    rows = read_table(path)[1] if suffix == ".csv" else read_objects(path)
    first = next((row.fields for row in rows if row.fields), {})
    if reader := find_reader(first):
        return getattr(vlm.data, reader)(path, image_root)
    if suffix == ".csv":
        return vlm.read_csv(path, image_root)
    if {"instruction", "output"} <= first.keys() and first.keys().isdisjoint(_NOT_ALPACA):
        return vlm.read_alpaca(path)
    return vlm.read_jsonl(path, image_root)


def _sample(output, num_examples=10, **arguments):
    vlm.samples.write_sample(output, num_examples, **arguments)
    print(f"{num_examples} rows -> {output}, their images -> {Path(output).parent / 'images'}")


def _train(config, after=(), accept_changes=False, **changes):
    config = _read_config(config, **changes)
    folder = Path(config.output_dir)
    if after:
        say(folder, event="waiting")
        if not wait_for(after, folder / STOP):
            with reported(folder) as begin:
                begin()
                raise Stopped(f"{folder} was stopped before it began")
        say(folder, event="starting")
    vlm.train(config, accept_changes)


def _read_config(file, changes=(), method=None):
    for change in changes:
        if "=" not in change:
            raise ValueError(f"--set {change}: write it as NAME=VALUE")
    changes = ({"method": method} if method else {}) | dict(change.split("=", 1) for change in changes)
    return vlm.RunConfig.read(file, **changes)


def _start(config, after=(), accept_changes=False, **changes):
    config = _read_config(config, **changes)
    print(TrainingRun(config.output_dir).start(config, accept_changes, after))


def _status(runs):
    print(*map(TrainingRun, runs), sep="\n")


def _stop(runs, now=False):
    for run in map(TrainingRun, runs):
        run.abort() if now else run.stop()
        print(run)


def _resume(runs, accept_changes=False):
    for folder in runs:
        print(TrainingRun(folder).start(accept_changes=accept_changes))
