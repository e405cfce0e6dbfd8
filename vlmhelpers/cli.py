"""The command line: `python -m vlmhelpers` converts files to JSONL, checks them, makes a sample, and trains.

Exit codes: 0 for success, 1 where rows were found that cannot be used, 2 where the command could not do its work.
"""

import argparse
import os
import sys
from pathlib import Path

_LINES = 20  # of bad rows
_FIELDS = {  # the reader's arguments that name fields
    "alpaca": ["instruction_field", "input_field", "output_field"],
    "csv": ["image_field", "text_field", "response_field"],
    "jsonl": ["image_field", "text_field", "response_field"],
    "products": ["image_field"],
}
_OF_PRODUCTS = {  # arguments of read_products: what they are, in the help
    "instruction": ("TEXT", "what the user asks in every row"),
    "response": ("TEMPLATE", "the answer, with columns in braces, like 'Product: {title}'"),
}
_HELP = {
    "alpaca": "convert Alpaca JSON or JSONL to JSONL of messages",
    "csv": "convert a CSV of image paths, questions and answers to JSONL of messages",
    "jsonl": "convert JSONL of image paths, questions and answers, or of conversations, to JSONL of messages",
    "products": "convert a CSV or parquet table of products to JSONL of messages, and download their pictures",
}


def main(arguments=None):
    """Runs one command, by default that of sys.argv, and returns its exit code."""
    options = _parser().parse_args(arguments)
    try:
        return options.run(options)
    except (ValueError, OSError) as error:
        print(f"vlmhelpers: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("vlmhelpers: interrupted", file=sys.stderr)
        return 130


def _parser():
    parser = argparse.ArgumentParser(
        prog="python -m vlmhelpers", description="Convert and check data, and train on it."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, text in _HELP.items():
        _add_converter(commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}."), name)
    check = commands.add_parser("check", help="look at every row and picture of a file, and say what is wrong")
    check.add_argument("file", help="CSV, JSON, JSONL, or parquet of products")
    check.add_argument("--image-root", metavar="FOLDER", help="where image paths start (default: the file's folder)")
    check.add_argument("--rejected", metavar="FILE", help="save the rejected rows to this CSV")
    check.set_defaults(run=_check)
    _add_sample(commands)
    _add_train(commands)
    return parser


def _add_converter(command, name):
    command.add_argument("-i", "--input", required=True, metavar="FILE")
    command.add_argument("-o", "--output", required=True, metavar="FILE", help="the JSONL file to write")
    command.add_argument("--rejected", metavar="FILE", help="leave bad rows out and save them to this CSV")
    if name != "alpaca":
        command.add_argument("--image-root", metavar="FOLDER", help="where image paths start (default: input's folder)")
    for field in _FIELDS[name]:
        command.add_argument(f"--{field.replace('_', '-')}", metavar="NAME")
    if name == "products":
        for option, (value, text) in _OF_PRODUCTS.items():
            command.add_argument(f"--{option.replace('_', '-')}", metavar=value, help=text)
    if name == "jsonl":
        text = "download the pictures that are named by URLs"
        command.add_argument("--download", action="store_true", default=None, help=text)
    if name in ("jsonl", "products"):
        _add_downloads(command)
    command.set_defaults(run=_convert, reader=name)


def _add_downloads(command):
    text = "where downloaded pictures are kept (default: in the user's cache)"
    command.add_argument("--cache-dir", metavar="FOLDER", help=text)
    command.add_argument("--private-hosts", nargs="+", metavar="HOST", help="hosts allowed in a private network")


def _add_sample(commands):
    text = "write a JSONL file of drawn products and questions about them, to try the rest with"
    sample = commands.add_parser("sample", help=text, description=f"{text[0].upper()}{text[1:]}.")
    sample.add_argument("-o", "--output", required=True, metavar="FILE", help="its pictures go to images/ beside it")
    sample.add_argument("--num-examples", type=int, default=10, metavar="N", help="default: 10")
    sample.add_argument("--seed", type=int, default=0, metavar="N", help="other seeds give other examples (default: 0)")
    text = "words (default): several questions in turn; json: one question, answered with a line of JSON"
    sample.add_argument("--answers", choices=["words", "json"], default="words", help=text)
    sample.add_argument("--size", type=int, default=96, metavar="PIXELS", help="of the pictures (default: 96)")
    sample.add_argument("--force", action="store_true", help="overwrite files that are there with other content")
    sample.set_defaults(run=_sample)


def _add_train(commands):
    train = commands.add_parser(
        "train",
        help="fine-tune a model as a JSON or YAML file says",
        description="Fine-tune a model on a JSONL file. The same command goes on after an interruption.",
        epilog="On several GPUs: accelerate launch --num_processes 2 -m vlmhelpers train CONFIG",
    )
    train.add_argument("config", metavar="CONFIG", help=".json or .yaml file of the settings of RunConfig")
    text = "settings in place of the file's; paths among them start at the working directory"
    train.add_argument("--set", nargs="+", default=[], action="extend", metavar="NAME=VALUE", help=text)
    train.set_defaults(run=_train)


def _convert(options):
    import vlmhelpers

    _refuse_same_files(options)
    names = ["image_root", "download", "cache_dir", "private_hosts", *_FIELDS[options.reader], *_OF_PRODUCTS]
    given = {name: getattr(options, name, None) for name in names}
    read = getattr(vlmhelpers, f"read_{options.reader}")
    report = _report(read(options.input, **{name: value for name, value in given.items() if value is not None}))
    if report.rejected and not options.rejected:
        _list_rejected(report.rejected, options.input)
        print("Nothing was written. Mend these rows, or leave them out with --rejected FILE.", file=sys.stderr)
        return 1
    if options.rejected:
        report.save_rejected(options.rejected)
        print(f"{len(report.rejected)} rejected rows -> {options.rejected}", file=sys.stderr)
    if not len(report.dataset):
        print(f"{options.input} has no row that can be used. Nothing was written.", file=sys.stderr)
        return 1
    root = given["image_root"] or Path(options.input).parent
    with_links = options.reader == "products" or given["download"]
    if with_links:
        root = _root_of_pictures(report.dataset, root)
    vlmhelpers.data.write_jsonl(report.dataset, options.output, root)
    where = f", image paths start at {root}" if with_links else ""
    print(f"{len(report.dataset)} rows -> {options.output}{where}")
    return 0


def _root_of_pictures(dataset, root):
    """`root` where all pictures lie inside it, else the deepest folder that holds them all, such as the cache."""
    from vlmhelpers.data.rows import ImageRoot, stream_plain_rows

    paths = [image["path"] for row in stream_plain_rows(dataset, ["images"], "checking") for image in row["images"]]
    if os.path.isdir(root) and all(map(ImageRoot(root).relative, paths)):
        return root
    return os.path.commonpath([os.path.dirname(path) for path in paths])


def _refuse_same_files(options):
    """Raises ValueError where a file would be written over another of the command's files."""
    files = [file for file in (options.input, options.output, options.rejected) if file]
    for place, file in enumerate(files):
        for other in files[:place]:
            same = os.path.realpath(file) == os.path.realpath(other)
            if same or (os.path.exists(file) and os.path.exists(other) and os.path.samefile(file, other)):
                raise ValueError(f"{file} and {other} are the same file. Name another one to write to.")


def _report(dataset):
    """What the reader and the messages alone say of the rows, as a Report; no picture is opened."""
    from vlmhelpers.data.report import Finding, make_report
    from vlmhelpers.data.rows import stream_plain_rows
    from vlmhelpers.data.rules import merge_problems, row_problems
    from vlmhelpers.data.schema import FEATURES

    rejected = {}
    for index, row in enumerate(stream_plain_rows(dataset, [*FEATURES, "problem"], "checking")):
        if problems := row_problems(row):
            rejected["", index] = Finding("", index, *merge_problems(problems))
    return make_report({"": dataset}, rejected, [], [])


def _list_rejected(records, source):
    for record in records[:_LINES]:
        line = f"{source}, row {record['row']}: {record['reason']} -> {record['remedy']}"
        print("".join(c if c.isprintable() else " " for c in line), file=sys.stderr)
    if len(records) > _LINES:
        print(f"... and {len(records) - _LINES} more", file=sys.stderr)


def _sample(options):
    from vlmhelpers.samples import write_sample

    write_sample(options.output, options.num_examples, options.seed, options.answers, options.size, options.force)
    pictures = Path(options.output).parent / "images"
    print(f"{options.num_examples} rows -> {options.output}, their pictures -> {pictures}")
    return 0


def _train(options):
    from vlmhelpers.training.config import RunConfig
    from vlmhelpers.training.run import train

    changes = dict(_name_and_value(text) for text in options.set)
    train(RunConfig.read(options.config, **changes))
    return 0


def _name_and_value(text):
    name, separator, value = text.partition("=")
    if not separator:
        raise ValueError(f"--set {text}: write it as NAME=VALUE")
    return name, value


def _check(options):
    from vlmhelpers import check_dataset

    report = check_dataset(_read_any(options.file, options.image_root))
    print(report)
    if options.rejected:
        report.save_rejected(options.rejected)
    return 1 if report.rejected else 0


def _read_any(path, image_root):
    """The file's Dataset, by the reader that fits its first object."""
    from vlmhelpers import read_alpaca, read_csv, read_jsonl, read_products
    from vlmhelpers.data.readers.json_file import read_objects

    suffix = Path(path).suffix.lower()
    if suffix in (".csv", ".parquet"):
        return (read_csv if suffix == ".csv" else read_products)(path, image_root)
    first = next((record.value for record in read_objects(path) if isinstance(record.value, dict)), {})
    only_in_jsonl = {"messages", "conversations", "image", "images"}
    if {"instruction", "output"} <= first.keys() and not only_in_jsonl & first.keys():
        return read_alpaca(path)
    return read_jsonl(path, image_root)
