"""What the command line takes: its commands, their arguments, and a help that is made of the declared settings."""

import argparse

import vlmhelpers as vlm
from vlmhelpers.commands.settings import Chatting, Evaluating, Exporting, Generating, Merging, Pushing, grouped
from vlmhelpers.common.printable import one_line, shortened
from vlmhelpers.common.settings import Setting, Settings, in_one_sentence
from vlmhelpers.training.methods import catalog

_COMMANDS = {
    "alpaca": "convert Alpaca JSON or JSONL to JSONL of messages",
    "csv": "convert a CSV of image paths, questions and answers to JSONL of messages",
    "jsonl": "convert JSONL of image paths, questions and answers, or of conversations, to JSONL of messages",
    "products": "convert a CSV or parquet table of products to JSONL of messages, and download their images",
    "check": "check every row and image of a file of answers, pairs, rated answers or prompts, and say what is wrong",
    "sample": "write a JSONL file of drawn products and questions about them, to try the rest with",
    "preflight": "tell tokens, memory and time of a run before it begins, and what would make it fit",
    "train": "train a model as a file or --set says; the same command goes on after an interruption",
    "start": "the same in the background, where it goes on when this terminal is closed",
    "status": "say in a line what each run is doing",
    "stop": "let runs save a checkpoint and end; `resume` goes on from there",
    "resume": "go on in the background, one after the other, with runs that were stopped, or were lost",
    "generate": "let a model answer a prompt about images, or the rows of a file; lines of JSON come out",
    "evaluate": "let a run and its base answer held-out rows, and compare their scores",
    "chat": "talk to a tuned model or its base, also about images",
    "merge": "merge a run's adapter into its base, and check that the whole model answers as the adapter",
    "export": "merge, or make files for llama.cpp and Ollama, or give the adapter a card",
    "push": "show what an exported folder would send to the Hub, or send it",
    "convert": "write a run as LLaMA-Factory or ms-swift takes it, or read one of theirs",
    "studio": "serve the training panel as a page that only this machine can reach",
    "serve": "let programs start, watch and stop runs by HTTP: docs/jobs.md",
}
_CONVERTER = "-i --input, -o --output, --rejected"
_FIELDS = "--image-root, --image-field, --text-field, --response-field, --instruction"
_DOWNLOADS = "--cache-dir, --private-hosts"
_TAKES = {  # command -> its arguments; a converter's are those of its reader
    "alpaca": f"{_CONVERTER}, --image-root, --instruction-field, --input-field, --output-field",
    "csv": f"{_CONVERTER}, {_FIELDS}",
    "jsonl": f"{_CONVERTER}, {_FIELDS}, --download, {_DOWNLOADS}",
    "products": f"{_CONVERTER}, --image-root, --image-field, --instruction, --response, {_DOWNLOADS}",
    "check": f"file, --model, {_FIELDS}, --rejected",
    "sample": "-o --output, --num-examples, --seed, --answers, --size, --force",
    "preflight": "config, --method, --set, --gpu",
    "train": "config, --method, --set, --accept-changes, --after, --at-once",
    "start": "config, --method, --set, --accept-changes, --after, --at-once",
    "status": "runs",
    "stop": "runs, --now",
    "resume": "runs, --accept-changes",
    "generate": "dataset, --image",
    "chat": "--image",
    "convert": "path, --to, --folder, --name, --device, --from, --output",
    "studio": "folder, --port, --language, --no-browser",
    "serve": "--root, --host, --port, --at-once, --token-file, --names",
}
_FILE, _FOLDER, _NUMBER = {"metavar": "FILE"}, {"metavar": "FOLDER"}, {"metavar": "N", "type": int}
_PROGRAM = {"choices": ["llama-factory", "swift"]}
_ARGUMENTS = {  # for argparse's add_argument; the names of fields are not listed
    "file": {"help": "any file or folder of rows that is read here: JSON, JSONL, CSV, parquet, ..."},
    "--model": {"metavar": "NAME", "help": "a family, or a model's folder or hub id, that has to take what is kept"},
    "config": {"nargs": "?", "metavar": "CONFIG", "help": ".json or .yaml file of the settings below"},
    "-i --input": _FILE | {"required": True},
    "-o --output": _FILE | {"required": True, "help": "the JSONL file to write; images go beside it"},
    "--rejected": _FILE | {"help": "save the rejected rows to this CSV; a converter then writes the others"},
    "--image-root": _FOLDER | {"help": "where image paths start, also in what is written (default: the file's folder)"},
    "--instruction": {"metavar": "TEXT", "help": "what the user asks in every row, in place of a field"},
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
    "--at-once": _NUMBER | {"help": "runs that train together, this one and those before it (default: 1)"},
    "--root": _FOLDER | {"help": "the folder of all that a job may name (default: the working directory)"},
    "--host": {"metavar": "ADDRESS", "help": "where to listen (default: 127.0.0.1); others need a token of yours"},
    "--token-file": _FILE | {"help": "holds the token (default: VLMHELPERS_TOKEN, or a new one, which is printed)"},
    "--names": {"nargs": "+", "metavar": "HOST", "help": "names, besides localhost, that clients may call it by"},
    "path": {"metavar": "FILE", "help": "settings of a run here (with --to), or of a run there (with --from)"},
    "--to": _PROGRAM | {"help": "write the files of this program, with the rows, into --folder"},
    "--from": _PROGRAM | {"dest": "origin", "help": "read a file of this program, and write --output"},
    "--folder": _FOLDER | {"help": "where the files go (default: interchange)"},
    "--name": {"metavar": "NAME", "help": "of the files (default: rows)"},
    "--device": {"choices": ["gpu", "cpu"], "help": "what it is to run on there (default: as here)"},
    "--output": _FILE | {"help": "the settings to write, .json or .yaml (default: only show them)"},
    "runs": {"metavar": "FOLDER", "nargs": "+", "help": "the output_dir of a run"},
    "--now": {"action": "store_true", "help": "end them at once; what came after the last checkpoint is lost"},
    "--gpu": {"metavar": "NAME", "help": "a GPU that is not here, such as T4 or A100 80 (default: the one here)"},
    "--image": {"metavar": "FILE", "nargs": "+", "help": "images of the (first) question"},
    "dataset": {"nargs": "?", "metavar": "DATASET", "help": Generating.described()["dataset"].description},
    "folder": {"nargs": "?", "metavar": "FOLDER", "help": "the folder of the runs (default: outputs/studio)"},
    "--port": _NUMBER | {"help": "default: 8866, or one near it; of serve 8000"},
    "--language": {"metavar": "CODE", "help": "en, zh, de, ru, ko, ja, fr or es (default: as it was left, else en)"},
    "--no-browser": {"action": "store_false", "dest": "browser", "help": "only print the page's address"},
    "--set": {"dest": "changes", "nargs": "+", "action": "extend", "metavar": "NAME=VALUE"},
}
STEPS = {  # command -> its settings; those without a default, but for -o --output, come without a name
    "generate": Generating,
    "evaluate": Evaluating,
    "chat": Chatting,
    "merge": Merging,
    "export": Exporting,
    "push": Pushing,
}
OF_RUNS = ("preflight", "train", "start")  # commands whose help lists the settings of a run
_LAUNCH = "on several GPUs: accelerate launch --num_processes 2 -m vlmhelpers"
_ON_SEVERAL = {"generate": f"{_LAUNCH} generate MODEL DATASET", "evaluate": f"{_LAUNCH} evaluate MODEL"}
_GROUPS = {  # the first setting of each group in `RunConfig` -> what the group is about
    "model_id": "the run",
    "image_root": "the data",
    "weights": "the model, and what is trained of it",
    "epochs": "the training",
    "logging_steps": "what is written",
}


class _Parser(argparse.ArgumentParser):
    """One whose errors are a line, however long what was typed is, and name the help."""

    def error(self, message):
        text = shortened(one_line(f"{self.prog}: {message}. See {self.prog} --help"))
        self.exit(2, f"{text}\n")


def make_parser() -> argparse.ArgumentParser:
    """The parser; it gives only what is on the command line: the functions, readers and settings have defaults."""
    about = "Convert and check data, train on it, and use what was trained."
    parser = _Parser("python -m vlmhelpers", description=about)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    texts = {"formatter_class": argparse.RawDescriptionHelpFormatter, "argument_default": argparse.SUPPRESS}
    for name, text in _COMMANDS.items():
        command = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.", **texts)
        command.epilog = _settings_of_runs() if name in OF_RUNS else _ON_SEVERAL.get(name)
        taken = list(filter(None, _TAKES.get(name, "").split(", ")))
        if name in STEPS:
            _add_settings(command, STEPS[name], taken)
        for flags in taken:
            command.add_argument(*flags.split(), **_ARGUMENTS.get(flags, {"metavar": "NAME"}))
    return parser


def options_of(command: str) -> dict[str, str]:
    """The options of a command -> what the help calls their values."""
    flags = _TAKES.get(command, "").split(", ")
    return {flag.split()[-1]: _ARGUMENTS.get(flag, {}).get("metavar", "NAME") for flag in flags if flag[:1] == "-"}


def _add_settings(command, kind, but):
    for about, names in grouped(kind).items():
        group = command.add_argument_group(about) if about else command
        for name in (name for name in names if name not in but):
            _add_setting(group, kind.described()[name])


def _add_setting(group, setting: Setting):
    default = {True: "yes", False: "no"}[setting.default] if setting.kind is bool else setting.default
    shown = "" if default is None else f" (default: {default})"  # what none means is in the description
    texts = {"help": (setting.description + shown).replace("%", "%%")}
    flag = f"--{setting.name.replace('_', '-')}"
    if setting.is_required and setting.name != "output":
        group.add_argument(setting.name, metavar=setting.name.upper(), **texts)
    elif setting.kind is bool:
        group.add_argument(flag, action=argparse.BooleanOptionalAction, **texts)
    else:
        flags = ["-o", flag] if setting.name == "output" else [flag]
        group.add_argument(*flags, metavar=_metavar(setting), required=setting.is_required, **texts)


def _metavar(setting):
    if setting.choices:
        return "{" + ",".join(map(str, setting.choices)) + "}"
    return {int: "N", float: "NUMBER"}.get(setting.kind, "PATH" if setting.name == "output" else "TEXT")


def make_settings(kind: type[Settings], options: dict[str, object]) -> Settings:
    """The settings of a step by texts of the command line. Raises ValueError with what is wrong, by name."""
    if wrong := kind.problems(options):
        raise ValueError(in_one_sentence(wrong.values()))
    return kind(**options)


def _settings_of_runs():
    own = catalog.OWN_SETTINGS
    lines = ["settings, in CONFIG or by --set, whose paths start at the working directory:"]
    for name in (name for name in vlm.RunConfig.described() if name not in own):
        lines += [f"\n{_GROUPS[name]}:"] if name in _GROUPS else []
        lines.append(_line(name))
    lines.append("\nsettings that only some methods have:")
    lines += [_line(name, f"; {', '.join(catalog.methods_with(name))}") for name in own]
    lines.append("\nmethods, and the rows that each takes:")
    lines += [f"  {name}: {method.rows}" for name, method in catalog.METHODS.items()]
    return "\n".join([*lines, f"\n{_LAUNCH} train CONFIG"])


def _line(name, note=""):
    setting = vlm.RunConfig.described()[name]
    default = "required" if setting.is_required else f"default {setting.default}"
    return f"  {name} ({setting.values}, {default}{note}): {setting.description}"
