"""How long do other commands take, from their start to their end: the help, scored answers, and a merge?

Each is a process of its own, started anew. The programs run by turns, each on an adapter that it has trained itself.
"""

import argparse
import shutil
import sys
import tempfile
import time

import whole_epochs
from alternating import alternate, table
from other_programs import add_options
from whole_epochs import make_ways, prepare

WRITTEN = "written"  # the folder of what a command leaves
TASKS = ("help", "evaluate", "merge")


def main(argv=None):
    options = parse(argv)
    with tempfile.TemporaryDirectory() as options.folder:
        prepare(options)
        ways = make_ways(options, (whole_epochs.Ours, sys.executable))
        for way in ways.values():
            way.run()
        commands = {name: globals()[f"of_{name.lower()}"] for name in ways}

        def run(name, task):
            shutil.rmtree(ways[name].folder / WRITTEN, ignore_errors=True)
            command = commands[name](ways[name], adapter_of(ways[name]), options)[task]
            started = time.perf_counter()
            ways[name].execute(command)
            return time.perf_counter() - started

        for task in options.tasks:
            seconds = alternate({name: lambda name=name: run(name, task) for name in ways}, options.pairs)  # noqa: B023
            print(f"\n{task}\n{table(seconds, 'Ours')}")


def parse(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, rows=64, side=96, batch=16, pairs=3)
    parser.add_argument("--tokens", type=int, default=32, help="tokens of an answer at most")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS)
    options = parser.parse_args(argv)
    options.steps, options.save_strategy, options.cache = 2, "steps", "none"
    return options


def adapter_of(way):
    """The folder of its adapter: ms-swift and LLaMA-Factory leave it in the last checkpoint, ours beside it."""
    output = way.folder / f"output of {way.name}"
    return output if way.name == "Ours" else output / f"checkpoint-{way.options.steps}"


def of_ours(way, output, options):
    start = [way.python, "-m", "vlmhelpers"]
    rows = [way.folder / "rows.jsonl", "--batch-size", options.batch, "--max-new-tokens", options.tokens]
    evaluate = [*start, "evaluate", output, "--no-base", "--dataset", *rows]
    return {
        "help": [*start, "--help"],
        "evaluate": [*map(str, evaluate), "-o", str(way.folder / WRITTEN)],
        "merge": [*start, "merge", str(output), "-o", str(way.folder / WRITTEN), "--dtype", "float32", "--no-check"],
    }


def of_msswift(way, output, options):
    common = {"adapters": output, "torch_dtype": "float32", "use_hf": "true"}
    answers = {"val_dataset": way.folder / "rows.jsonl", "max_batch_size": options.batch, "metric": "acc"}
    answers |= {"max_new_tokens": options.tokens, "temperature": 0, "infer_backend": "transformers", "stream": "false"}
    return {
        "help": [way.python, "-m", "swift.cli.main", "sft", "--help"],
        "evaluate": way.start("infer_main", common | answers),
        "merge": way.start("export_main", common | {"merge_lora": "true", "output_dir": way.folder / WRITTEN}),
    }


def of_llamafactory(way, output, options):
    common = {"model_name_or_path": str(way.folder / "model"), "adapter_name_or_path": str(output)}
    common |= {"template": "qwen2_vl", "finetuning_type": "lora"}
    answers = {
        "stage": "sft", "do_predict": True, "predict_with_generate": True, "eval_dataset": "rows",
        "dataset_dir": str(way.folder), "cutoff_len": 4096, "per_device_eval_batch_size": options.batch,
        "image_max_pixels": options.side**2, "image_min_pixels": options.side**2, "use_cpu": True, "bf16": False,
        "max_new_tokens": options.tokens, "do_sample": False, "output_dir": str(way.folder / WRITTEN),
        "report_to": "none",
    }  # fmt: skip
    merged = {"export_dir": str(way.folder / WRITTEN), "export_device": "cpu", "infer_dtype": "float32"}
    return {
        "help": [way.python, "-m", "llamafactory.cli", "help"],
        "evaluate": way.start("train", common | answers),
        "merge": way.start("export", common | merged),
    }


if __name__ == "__main__":
    main()
