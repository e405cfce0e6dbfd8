"""SmolVLM, SmolVLM2 and Idefics3: an image is enlarged to whole tiles, and an overview stands beside them."""

import math
from dataclasses import dataclass

import torch

from vlmhelpers.families.family import Family


@dataclass(frozen=True)
class SmolVLM(Family):
    """The cap is a side: every image is resized until its longer one has that length, small images as well.

    So a cap above the present one makes images larger.
    """

    mixable: bool = True
    has_pixel_cap: bool = True
    # Of what it leaves out of 4 bits (unsloth_zoo 2026.10) no name is this tower's.
    not_by_unsloth: str = "in 4 bits it would quantize the vision tower, too"

    def set_max_pixels(self, image_processor, max_pixels):
        """As many tiles along the longer side as a square of `max_pixels` has. Raises ValueError for less than one."""
        tile = _tile(image_processor)
        if max_pixels < tile**2:
            raise ValueError(f"max_pixels={max_pixels} is less than one tile of {self.name}: {tile**2} pixels")
        image_processor.size = {"longest_edge": math.isqrt(max_pixels) // tile * tile}

    def caps(self, image_processor):
        tile = _tile(image_processor)
        most = max(1, dict(image_processor.size)["longest_edge"] // tile) if image_processor.do_image_splitting else 1
        return [(tiles * tile) ** 2 for tiles in range(most, 0, -1)]

    def dry_run_inputs(self, config, ids, image_tokens):
        """As many tiles as have these tokens and two beside them, the overview among them.

        Their pixels are one real number: the model looks which tiles are empty.
        """
        side = config.vision_config.image_size
        tokens = (side // config.vision_config.patch_size // config.scale_factor) ** 2
        tiles = max(1, image_tokens // (tokens + 2))
        ids[:, : tiles * tokens] = config.image_token_id
        shape = (len(ids), tiles, side, side)
        return {
            "pixel_values": torch.ones(1).expand(len(ids), tiles, 3, side, side),
            "pixel_attention_mask": torch.ones(shape, dtype=torch.long),
        }


def _tile(image_processor):
    return dict(image_processor.max_image_size)["longest_edge"]


SMOLVLM = SmolVLM(
    name="smolvlm",
    model_types=("smolvlm", "idefics3"),
    processors=("SmolVLMProcessor", "Idefics3Processor"),
    id_pattern="smolvlm|idefics3|smoldocling|granite-docling",
    control_tokens=r"<(row_\d+_col_\d+|global-img|fake_token_around_image|image|end_of_utterance)>",
    packable=True,
    gguf_architectures=("SmolVLMForConditionalGeneration", "Idefics3ForConditionalGeneration"),
    not_by_ollama="its converter has neither SmolVLM nor Idefics3",
    licenses=(("smolvlm", {"license": "apache-2.0"}, "Apache License 2.0"),),
)
