"""How long does a user wait for three epochs: whole programs, from their start to the saved adapter?

Each way is a command in a process of its own, started anew for every round: imports, the model's loading, checks of the
data, what is stored beside it, the first step and the saving are all in the time. They run by turns.
"""

import argparse
import json
import math
import statistics
import sys
import tempfile
import time
from pathlib import Path

from alternating import alternate, table
from other_programs import LlamaFactory, MsSwift, Program, add_options, write_rows
from training_loop import QUESTION, make_model, make_processor, make_rows, make_trainer

HERE = Path(__file__).resolve()


def main(argv=None):
    options = parse(argv)
    if options.trl:
        return train_by_trl(options)
    with tempfile.TemporaryDirectory() as options.folder:
        prepare(options)
        ways = make_ways(options, (Ours, sys.executable), (Trl, sys.executable))
        loops = {name: [] for name in ways}

        def run(name):
            started = time.perf_counter()
            loops[name].append(ways[name].run())
            return time.perf_counter() - started

        seconds = alternate({name: lambda name=name: run(name) for name in ways}, options.pairs)
    print(table(seconds, "Ours"), "\n")
    for name, way in ways.items():
        loop = statistics.median(loops[name])
        rest = statistics.median(seconds[name]) - loop
        print(f"{name:12} training {loop:.1f} s, all else {rest:.1f} s, loss {way.loss:.4f}, {way.peak_mb:.0f} MB")


def parse(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, rows=200, side=224, batch=4, pairs=3)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--steps", type=int, help="in place of the epochs; 1 is the time to the first step")
    parser.add_argument("--cache", default="features", help="what ours keeps on disk: none, pixels or features")
    parser.add_argument("--trl", metavar="FOLDER", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    options.steps = options.steps or options.epochs * math.ceil(options.rows / options.batch)
    options.save_strategy, options.way, options.folder = "steps", "TRL", options.trl
    return options


def make_ways(options, *ours):
    """The programs that are there, by name."""
    given = (*ours, (MsSwift, options.ms_swift), (LlamaFactory, options.llamafactory))
    return {kind.__name__: kind(kind.__name__, python, options, options.folder) for kind, python in given if python}


def prepare(options):
    """The model and the rows in the folder from which all read them."""
    write_rows(make_rows(options).with_format("arrow")[:].to_pylist(), options.folder)
    processor = make_processor(options)
    for part in (make_model(options), processor):
        part.save_pretrained(Path(options.folder) / "model")
    options.image_token_id = processor.image_token_id


class Ours(Program):
    def command(self, output):
        o = self.options
        settings = {
            "model_id": str(self.folder / "model"), "dataset": str(self.folder / "rows.jsonl"),
            "output_dir": str(output), "max_steps": o.steps, "batch_size": o.batch, "gradient_accumulation_steps": 1,
            "bits": 16, "lora_r": 8, "lora_alpha": 8, "learning_rate": 1e-3, "lr_scheduler_type": "linear",
            "warmup_steps": 0, "max_pixels": o.side**2, "cache": o.cache, "save_steps": 100_000,
            "backend": "transformers",
        }  # fmt: skip
        (self.folder / "ours.yaml").write_text(json.dumps(settings))  # JSON is YAML, too
        return [self.python, "-m", "vlmhelpers", "train", str(self.folder / "ours.yaml")]

    def result(self, output):
        found = json.loads((output / "results.json").read_text())
        return {"train_runtime": found["seconds"], "train_loss": found["history"][-1]["train_loss"]}


class Trl(Program):
    """The script that TRL's documentation shows: rows of prompt and completion, its own collator, its fastest loss."""

    def command(self, output):
        names = ("rows", "side", "vocabulary", "batch", "steps")
        numbers = [str(x) for name in names for x in (f"--{name}", getattr(self.options, name))]
        return [self.python, HERE, *numbers, "--trl", self.folder]

    def result(self, output):
        return json.loads((self.folder / "trl.json").read_text())


def train_by_trl(options):
    """What a process of TRL does."""
    from datasets import Dataset, Features, List, Value
    from datasets import Image as ImageFeature

    processor, folder = make_processor(options), Path(options.folder)
    rows = map(json.loads, (folder / "rows.jsonl").read_text().splitlines())
    question = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}]
    prompt, end = processor.apply_chat_template(question, add_generation_prompt=True), processor.tokenizer.eos_token
    rows = [
        {"prompt": prompt, "completion": row["messages"][1]["content"] + end, "images": row["images"]} for row in rows
    ]
    text = Value("string")
    features = Features({"prompt": text, "completion": text, "images": List(ImageFeature())})
    trainer = make_trainer(options, Dataset.from_list(rows, features=features), "chunked_nll")
    found = trainer.train()
    trainer.save_model(str(folder / "trl"))
    (folder / "trl.json").write_text(json.dumps(found.metrics))


if __name__ == "__main__":
    main()
