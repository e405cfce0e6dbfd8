"""How fast do answers come: the usual loop, one row at a time, against `generate` in batches?"""

import argparse
import time

import torch
from alternating import alternate, table
from datasets import Dataset

from vlmhelpers.common.environment import quiet
from vlmhelpers.data.schema import FEATURES, make_row
from vlmhelpers.families import TINY_BASES, tiny_model
from vlmhelpers.inference.generation import generate
from vlmhelpers.models.loading import load_model
from vlmhelpers.samples.drawing import QUESTIONS, sample_products


def main(argv=None):
    options = parse(argv)
    quiet()
    dataset = make_rows(options)
    for family in TINY_BASES if options.family == "all" else [options.family]:
        print(f"\n{family}: {len(dataset)} rows, batches of {options.batch}")
        compare(family, dataset, options)


def parse(argv):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--family", choices=[*TINY_BASES, "all"], default="qwen3-vl", help="whose tiny model answers")
    parser.add_argument("--rows", type=int, default=64, help="questions about drawn pictures, one each")
    parser.add_argument("--side", type=int, default=96, help="the pictures' sides in pixels")
    parser.add_argument("--batch", type=int, default=32, help="rows per batch")
    parser.add_argument("--tokens", type=int, default=64, help="tokens of an answer at most")
    parser.add_argument("--pairs", type=int, default=3, help="rounds in which both ways run once")
    return parser.parse_args(argv)


def make_rows(options):
    samples = sample_products(options.rows, "answers", options.side)
    questions = [list(QUESTIONS.items())[i % len(QUESTIONS)] for i in range(options.rows)]
    rows = [
        make_row(q, answer(product), [image]) for (product, image), (q, answer) in zip(samples, questions, strict=True)
    ]
    return Dataset.from_list(rows, features=FEATURES)


def compare(family, dataset, options):
    """Prints the seconds of both ways; asserts that they give the same answers."""
    model, processor = load_model(tiny_model(family), bits=16)
    answers = {}

    def timed(name, way):
        started = time.perf_counter()
        answers[name] = way()
        return time.perf_counter() - started

    ways = {
        "one at a time": lambda: one_at_a_time(model, processor, dataset, options.tokens),
        "generate": lambda: generate(model, processor, dataset, options.batch, options.tokens, progress=False),
    }
    for way in ways.values():
        way()  # a model's first calls are slower
    seconds = alternate(
        {name: lambda name=name, way=way: timed(name, way) for name, way in ways.items()}, options.pairs
    )
    print(table(seconds, "one at a time"))
    assert answers["generate"] == answers["one at a time"], "the answers differ"


def one_at_a_time(model, processor, dataset, max_new_tokens):
    """The loop of most guides."""
    model.eval()
    answers = []
    for row in dataset:
        prompt = processor.apply_chat_template(row["messages"][:1], add_generation_prompt=True)
        inputs = processor(text=prompt, images=row["images"], add_special_tokens=False, return_tensors="pt")
        with torch.no_grad():
            tokens = model.generate(**inputs.to(model.device), max_new_tokens=max_new_tokens, do_sample=False)
        answer = processor.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        answers.append(answer.strip())
    return answers


if __name__ == "__main__":
    main()
