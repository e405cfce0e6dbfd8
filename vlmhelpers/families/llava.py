"""LLaVA-OneVision and LLaVA-NeXT (1.6): an overview, and tiles by the shape of the image, with an end of each row."""

import math
from dataclasses import dataclass

import torch

from vlmhelpers.families.family import Family


@dataclass(frozen=True)
class Llava(Family):
    """No cap: a model has the grids of tiles in its own configuration, where they would have to change, too."""

    mixable: bool = True
    not_by_unsloth: str = ""

    def repair_template(self, template):
        """The header of an answer as it ends a prompt: the published one of LLaVA-OneVision has a blank more."""
        header = "message['role'] + ' '"
        return template.replace(header, "message['role'] + (' ' if message['role'] != 'assistant' else '')")

    def dry_run_inputs(self, config, ids, image_tokens):
        """An image of the grid whose tokens are the most that are no more than these, else of the smallest."""
        tile = config.vision_config.image_size
        counts = {(height, width): _count(config, height, width) for height, width in config.image_grid_pinpoints}
        fitting = [size for size in counts if counts[size] <= image_tokens] or [min(counts, key=counts.get)]
        size = max(fitting, key=counts.get)
        ids[:, : counts[size]] = config.image_token_id
        tiles = 1 + math.prod(side // tile for side in size)
        return {
            "pixel_values": torch.empty(len(ids), tiles, 3, tile, tile, device="meta"),
            "image_sizes": torch.tensor([size] * len(ids)),
        }


def _count(config, height, width):
    """The tokens of an image of exactly that size: its overview, its tiles, and the end of each of their rows."""
    vision = config.vision_config
    side = vision.image_size // vision.patch_size
    rows, columns = side * height // vision.image_size, side * width // vision.image_size
    most = getattr(config, "vision_aspect_ratio", "").removeprefix("anyres_max_")
    scale = math.sqrt(rows * columns / (int(most) * side**2)) if most else 1
    if scale > 1.1:  # as transformers makes features of more tiles smaller
        rows, columns = int(rows // scale), int(columns // scale)
    return side**2 + rows * columns + rows


_APACHE = ({"license": "apache-2.0"}, "Apache License 2.0")

LLAVA_ONEVISION = Llava(
    name="llava-onevision",
    model_types=("llava_onevision",),
    processors=("LlavaOnevisionProcessor",),
    id_pattern=r"llava-onevision-qwen2-.*-hf",
    packable=True,
    not_by_ollama="its converter does not have LLaVA-OneVision",
    swift="llava_onevision_hf",
    licenses=(("llava-onevision-", *_APACHE),),
    values={"max_length": (9216, "tokens: an image takes up to 8,154, and there is no pixel cap")},
)
LLAVA_NEXT = Llava(
    name="llava-next",
    model_types=("llava_next",),
    processors=("LlavaNextProcessor",),
    id_pattern=r"llava-v1\.6-.*-hf",
    packable=True,
    several_images="LLaVA-NeXT was trained with one image in a conversation",
    not_by_ollama="its converter does not have LLaVA-NeXT",
    llama_factory="llava_next_mistral",
    swift="llava1_6_mistral_hf",
    licenses=(("llava-v1.6-mistral", *_APACHE),),
    values={"max_length": (4096, "tokens: an image takes up to 2,928, and there is no pixel cap")},
)
