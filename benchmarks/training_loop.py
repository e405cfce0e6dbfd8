"""How fast is a training step: TRL's own path, ours, ours after the first epoch, and other programs where given?

Each way runs in a process of its own, which stays, so that the peak of its memory is its own. They train by turns.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve()
QUESTION = "Describe this product."
LATER = "ours, later epochs"  # the pixels are precomputed and the features remembered
WAYS = ("TRL", "ours", "ours, precomputed", LATER)
SAME = 1e-5  # two losses closer than this, relative to their size, are the same to the fifth digit


def main(argv=None):
    options = parse(argv)
    if options.way:
        return serve(options)
    sys.path.insert(0, str(HERE.parent))
    from alternating import alternate, table

    with tempfile.TemporaryDirectory() as folder:
        ways = [way for way in WAYS if way in ("TRL", *options.ways)]
        workers = {way: Worker(way, options, folder) for way in ways} | other_programs(options, folder)
        seconds = alternate({way: worker.run for way, worker in workers.items()}, options.pairs)
        for way in ways:
            workers[way].stop()
    print(table(seconds, "TRL"))
    print("\nThe same in seconds of the processors, which a busy machine changes less")
    print(table({way: workers[way].processor_seconds for way in ways}, "TRL"), "\n")
    for way, worker in workers.items():
        print(f"{way:18} loss {worker.loss:.6f}, peak memory {worker.peak_mb:.0f} MB")
    for way in ways:
        assert abs(workers[way].loss - workers["TRL"].loss) < SAME * workers["TRL"].loss, f"{way} learned otherwise"


def parse(argv):
    from other_programs import add_options

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, rows=200, side=224, batch=4, pairs=5)
    parser.add_argument("--steps", type=int, default=50, help="steps per run")
    parser.add_argument("--ways", nargs="*", choices=WAYS, default=WAYS, help="to time beside TRL")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


class Worker:
    """A process that trains in one way whenever it is asked to."""

    def __init__(self, way, options, folder):
        numbers = ("rows", "side", "vocabulary", "batch", "steps")
        arguments = [str(x) for name in numbers for x in (f"--{name}", getattr(options, name))]
        self.processor_seconds = []
        self.log = Path(folder) / f"log of {way}"
        self.process = subprocess.Popen(
            [sys.executable, HERE, *arguments, "--way", way, "--folder", folder],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log.open("w"), text=True,
        )  # fmt: skip
        self.answer()  # it is ready

    def answer(self):
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"a worker has ended:\n{self.log.read_text()[-3000:]}")
        return json.loads(line)

    def run(self):
        """One run from the beginning: the seconds of its training loop."""
        print("run", file=self.process.stdin, flush=True)
        answer = self.answer()
        self.loss, self.peak_mb = answer["loss"], answer["peak_mb"]
        self.processor_seconds.append(answer["processor_seconds"])
        return answer["seconds"]

    def stop(self):
        self.process.stdin.close()
        self.process.wait()


def serve(options):
    """What a worker does: a run for each line of its input, and a line of JSON for each run."""
    answers, sys.stdout = sys.stdout, sys.stderr  # whatever else is printed is no answer
    prepare = prepare_trl if options.way == "TRL" else prepare_ours
    arguments = prepare(options)
    if options.way == LATER:
        make_trainer(options, **arguments).train()  # the first epoch, or as much of it as is timed
    print("{}", file=answers, flush=True)
    for _ in sys.stdin:
        trainer = make_trainer(options, **arguments)
        started, busy = time.perf_counter(), time.process_time()
        loss = trainer.train().training_loss
        answer = {
            "seconds": time.perf_counter() - started,
            "processor_seconds": time.process_time() - busy,
            "loss": loss,
            "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }
        print(json.dumps(answer), file=answers, flush=True)


def other_programs(options, folder):
    """Those that are asked for, by name, with the model and the rows that they read in `folder`."""
    from other_programs import LlamaFactory, MsSwift, write_rows

    pythons = {MsSwift: options.ms_swift, LlamaFactory: options.llamafactory}
    if any(pythons.values()):
        options.folder, options.save_strategy = folder, "no"
        write_rows(make_rows(options).with_format("arrow")[:].to_pylist(), folder)
        make_model(options).save_pretrained(Path(folder) / "model")
        processor = make_processor(options)
        processor.save_pretrained(Path(folder) / "model")
        options.image_token_id = processor.image_token_id
    wanted = {kind: python for kind, python in pythons.items() if python}
    return {kind.__name__: kind(kind.__name__, python, options, folder) for kind, python in wanted.items()}


def make_trainer(options, dataset, loss_type, collator=None, ours=False):
    """A trainer of a fresh model with fresh adapters: the same numbers at the start of every run."""
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    from vlmhelpers.families.qwen_vl import group_windows
    from vlmhelpers.models.lora import lora_targets
    from vlmhelpers.models.vision import cache_vision_features

    model = make_model(options)
    if ours:
        group_windows(model)
    arguments = SFTConfig(
        output_dir=options.folder, max_steps=options.steps, per_device_train_batch_size=options.batch,
        learning_rate=1e-3, max_length=None, loss_type=loss_type, gradient_checkpointing=False, bf16=False,
        use_cpu=True, logging_steps=10, save_strategy="no", report_to="none", disable_tqdm=True, seed=0,
    )  # fmt: skip
    lora = LoraConfig(r=8, lora_alpha=8, target_modules=lora_targets(model), task_type="CAUSAL_LM")
    trainer = SFTTrainer(
        model, arguments, collator, dataset, processing_class=make_processor(options), peft_config=lora
    )
    if options.way == LATER:
        cache_vision_features(trainer.model, Path(options.folder) / "features")
    return trainer


def make_model(options):
    """The tiny Qwen2.5-VL, with random rows for a larger vocabulary."""
    import torch
    from transformers import AutoModelForImageTextToText, set_seed

    from vlmhelpers.families import tiny_model

    set_seed(0)
    model = AutoModelForImageTextToText.from_pretrained(
        tiny_model("qwen2.5-vl"), dtype=torch.float32, trust_remote_code=False
    )
    if options.vocabulary:
        model.resize_token_embeddings(options.vocabulary, mean_resizing=False)
    return model


def make_processor(options):
    from transformers import AutoProcessor

    from vlmhelpers.families import tiny_model

    processor = AutoProcessor.from_pretrained(tiny_model("qwen2.5-vl"), trust_remote_code=False)
    processor.image_processor.size = {"shortest_edge": options.side**2, "longest_edge": options.side**2}
    return processor


def make_rows(options):
    """Rows of the schema, with pictures in PNG files."""
    from datasets import Dataset

    from vlmhelpers.data.schema import FEATURES, make_row
    from vlmhelpers.samples.drawing import sample_products

    rows = []
    for number, (product, picture) in enumerate(sample_products(options.rows, "benchmark", size=options.side)):
        path = Path(options.folder) / f"{number}.png"
        picture.save(path)
        rows.append(make_row(QUESTION, f"A {product.pattern} {product.color} {product.category}.", [str(path)]))
    return Dataset.from_list(rows, features=FEATURES)


def prepare_ours(options):
    from vlmhelpers.batches import precompute
    from vlmhelpers.batches.collator import VisionCollator

    dataset, processor = make_rows(options), make_processor(options)
    if options.way != "ours":
        dataset = precompute(dataset, processor, Path(options.folder) / "pixels")
    collator = VisionCollator(processor, logits="labeled")
    return {"dataset": dataset, "collator": collator, "loss_type": "nll", "ours": True}


def prepare_trl(options):
    """Rows of prompt and completion for TRL's own collator, as texts, so that it learns the very same tokens.

    Of messages it would also learn the line break that the chat template writes after an answer.
    """
    from datasets import Dataset, Features, List, Value
    from datasets import Image as ImageFeature

    from vlmhelpers.data.schema import answer_of, user

    processor = make_processor(options)
    prompt = processor.apply_chat_template([user(QUESTION, images=1)], add_generation_prompt=True)
    undecoded = make_rows(options).with_format("arrow")[:].to_pylist()
    rows = [
        {"prompt": prompt, "completion": f"{answer_of(row)}{processor.tokenizer.eos_token}", "images": row["images"]}
        for row in undecoded
    ]
    text = Value("string")
    features = Features({"prompt": text, "completion": text, "images": List(ImageFeature())})
    return {"dataset": Dataset.from_list(rows, features=features), "loss_type": "chunked_nll"}


if __name__ == "__main__":
    main()
