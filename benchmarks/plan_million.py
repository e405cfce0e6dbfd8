"""What a million pictures take: the disk for pixels and features, and the hours, by this package's own means.

    python benchmarks/plan_million.py [MODEL [TOKENS [SIDE]]]

Drawn photos of SIDE pixels with at most TOKENS image tokens each, and an answer of about 40 tokens. Sizes are those of
files that are really written, but for features: tokens times width. Hours of storing are those of this processor, hours
of training the estimate from published speeds (`estimate_time`). Texts are counted by the tiny model's tokenizer.
"""

import sys
import tempfile
import time
from pathlib import Path

from datasets import Dataset
from photo_batches import PIXELS_PER_TOKEN, file_size, take_photo
from transformers import AutoProcessor, Qwen2VLImageProcessor

from vlmhelpers.batches.collator import VisionCollator
from vlmhelpers.batches.pixel_cache import precompute
from vlmhelpers.data.schema import FEATURES, make_row
from vlmhelpers.estimation.memory import estimate_memory, estimate_time
from vlmhelpers.families import find_config, tiny_model

ANSWER = "A red scarf with black stripes lies on a wooden table beside an open window. " * 2
IMAGES, PHOTOS, SHARD = 1_000_000, 4, 1e9  # SHARD: bytes


def main(model_id="Qwen/Qwen2.5-VL-3B-Instruct", tokens="512", side="2000"):
    found = plan(model_id, int(tokens), int(side))
    print(
        f"{IMAGES:,} photos for {model_id}, {found.pop('image tokens')} image tokens each, {found.pop('tokens')} in all"
    )
    for name, value in found.items():
        print(f"{name:45} {value}")


def plan(model_id: str, tokens: int, side: int) -> dict[str, object]:
    """What the plan says, by name."""
    processor = AutoProcessor.from_pretrained(tiny_model("qwen2.5-vl"), trust_remote_code=False)
    cap = tokens * PIXELS_PER_TOKEN
    processor.image_processor = Qwen2VLImageProcessor(size={"shortest_edge": 56 * 56, "longest_edge": cap})
    with tempfile.TemporaryDirectory() as folder:
        photos = [take_photo(Path(folder) / f"{number}.jpg", number, side) for number in range(PHOTOS)]
        rows = Dataset.from_list([make_row("What is here?", ANSWER, [photo]) for photo in photos], features=FEATURES)
        started = time.process_time()
        precompute(rows, processor, Path(folder) / "pixels", workers=1, progress=False)
        seconds = (time.process_time() - started) / PHOTOS
        photo = sum(map(file_size, photos)) / PHOTOS
        pixels = sum(file.stat().st_size for file in Path(folder, "pixels").rglob("*.safetensors")) / PHOTOS
        batch = VisionCollator(processor)([rows[0]])
    of_image = int((batch["input_ids"] == processor.image_token_id).sum())
    length, labeled = batch["input_ids"].shape[1], int((batch["labels"] != -100).sum())
    width = find_config(model_id).vision_config.out_hidden_size
    flops = estimate_memory(model_id, length, of_image, labeled_tokens=labeled, bits=16).flops
    hours = {name: [bound / 3600 * IMAGES for bound in bounds] for name, bounds in estimate_time(flops).items()}
    disk = {"photos": photo, "pixels": pixels, "features in 16 bits": 2 * of_image * width}
    return {
        "image tokens": of_image,
        "tokens": length,
        **{f"disk for {name}, TB": f"{size * IMAGES / 1e12:.2f}" for name, size in disk.items()},
        f"shards of {SHARD / 1e9:g} GB": f"{photo * IMAGES / SHARD:,.0f}",
        "storing the pixels, hours of one core": f"{seconds * IMAGES / 3600:.0f}",
        **{f"an epoch on one {name}, hours": f"{low:.0f} to {high:.0f}" for name, (low, high) in hours.items()},
    }


if __name__ == "__main__":
    main(*sys.argv[1:])
