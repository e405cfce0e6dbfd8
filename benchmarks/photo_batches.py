"""How fast do batches come out of 12-megapixel photos: TRL's collator, ours, and ours over precomputed pixels?"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from alternating import alternate, table
from datasets import Dataset, Features, List
from datasets import Image as ImageFeature
from PIL import Image
from transformers import AutoProcessor, Qwen2VLImageProcessor
from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

from vlmhelpers.batches import precompute
from vlmhelpers.batches.collator import VisionCollator
from vlmhelpers.common.environment import quiet
from vlmhelpers.data.schema import FEATURES, assistant, make_row, user
from vlmhelpers.families import tiny_model

QUESTION, ANSWER = "Describe this product.", "A red striped scarf."
PIXELS_PER_TOKEN = 28 * 28


def main(argv=None):
    options = parse(argv)
    quiet()
    processor = AutoProcessor.from_pretrained(tiny_model("qwen2.5-vl"), trust_remote_code=False)
    size = {"shortest_edge": 56 * 56, "longest_edge": options.tokens * PIXELS_PER_TOKEN}
    processor.image_processor = Qwen2VLImageProcessor(size=size)  # the published one: patches of 14, CLIP's mean
    with tempfile.TemporaryDirectory() as folder:
        photos = [take_photo(Path(folder) / f"{i}.jpg", i, options.side) for i in range(options.rows)]
        print(f"{len(photos)} photos, {sum(map(file_size, photos)) / 1e6 / len(photos):.1f} MB each")
        ways = Ways(photos, processor, folder, options)
        ways.check()
        seconds = alternate(ways.by_name(), options.pairs)
    print(table(seconds, "TRL"))


def parse(argv):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=16, help="photos, one per row")
    parser.add_argument("--side", type=int, default=4000, help="their longer side in pixels")
    parser.add_argument("--tokens", type=int, default=512, help="image tokens per photo at most")
    parser.add_argument("--batch", type=int, default=4, help="rows per batch")
    parser.add_argument("--pairs", type=int, default=5, help="rounds in which every way runs once")
    parser.add_argument("--workers", type=int, help="threads of precompute")
    return parser.parse_args(argv)


def take_photo(path, seed, side):
    """A JPEG file of smoothed noise with grain, about as large as a camera's."""
    random = np.random.default_rng(seed)
    size = (side, side * 3 // 4)
    coarse = Image.fromarray(random.integers(0, 256, (60, 80, 3), dtype=np.uint8)).resize(
        size, Image.Resampling.BICUBIC
    )
    grain = Image.effect_noise((side // 2, side * 3 // 8), 20).resize(size).convert("RGB")
    Image.blend(coarse, grain, 0.3).save(path, quality=90)
    return str(path)


def file_size(path):
    return Path(path).stat().st_size


class Ways:
    """The same rows as TRL takes them and as we do, and an epoch of batches in each way."""

    def __init__(self, photos, processor, folder, options):
        self.processor, self.folder, self.options = processor, Path(folder), options
        self.ours = Dataset.from_list([make_row(QUESTION, ANSWER, [photo]) for photo in photos], features=FEATURES)
        turns = FEATURES["messages"]
        features = Features({"prompt": turns, "completion": turns, "images": List(ImageFeature())})
        rows = [
            {"prompt": [user(QUESTION, images=1)], "completion": [assistant(ANSWER)], "images": [photo]}
            for photo in photos
        ]
        self.trls = Dataset.from_list(rows, features=features)
        self.trl_collator = DataCollatorForVisionLanguageModeling(processor, completion_only_loss=True)
        self.collator = VisionCollator(processor)
        self.stored = self.precompute()

    def precompute(self):
        folder = tempfile.mkdtemp(dir=self.folder)  # nothing is there from an earlier round
        return precompute(self.ours, self.processor, folder, workers=self.options.workers, progress=False)

    def by_name(self):
        return {
            "TRL": lambda: self.epoch(self.trl_collator, self.trls),
            "ours": lambda: self.epoch(self.collator, self.ours),
            "ours, first epoch with precompute": self.first_epoch,
            "ours, later epochs": lambda: self.epoch(self.collator, self.stored),
        }

    def batches(self, collator, dataset):
        for start in range(0, len(dataset), self.options.batch):
            yield collator([dataset[i] for i in range(start, min(start + self.options.batch, len(dataset)))])

    def epoch(self, collator, dataset):
        started = time.perf_counter()
        for _ in self.batches(collator, dataset):
            pass
        return time.perf_counter() - started

    def first_epoch(self):
        started = time.perf_counter()
        self.epoch(self.collator, self.precompute())
        return time.perf_counter() - started

    def check(self):
        """Asserts that all three make the same batches, but for the line break after an answer, which TRL learns."""
        ways = ((self.trl_collator, self.trls), (self.collator, self.ours), (self.collator, self.stored))
        for trls, raw, stored in zip(*(self.batches(*way) for way in ways), strict=True):
            assert all(torch.equal(raw[name], stored[name]) for name in raw)
            assert all(torch.equal(trls[name], stored[name]) for name in ("input_ids", "pixel_values"))
        print(f"a batch has {tuple(raw['input_ids'].shape)} tokens and {tuple(raw['pixel_values'].shape)} pixel values")


if __name__ == "__main__":
    main()
