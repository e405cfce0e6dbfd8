"""What the rest of the package asks of Phi-3-Vision and Phi-3.5-Vision."""

import math
from dataclasses import dataclass

import torch
from transformers.image_utils import make_flat_list_of_images

from vlmhelpers.families.family import Family, ImageProcessorStandIn


class _Tokens(ImageProcessorStandIn):
    """Computes no pixels, only how many tokens images take."""

    def __call__(self, images, **_):
        own = self.image_processor
        return {"num_img_tokens": [own.count_tokens(*image.size) for image in make_flat_list_of_images(images)]}


@dataclass(frozen=True)
class Phi3Vision(Family):
    """An image is cut into tiles, and each tile takes as many tokens as any other."""

    size_reader = _Tokens

    def placeholder(self, processor, number):
        return f"<|image_{number}|>"

    def image_pattern(self, processor):
        return rf"<\|image_\d+\|>|{super().image_pattern(processor)}"

    def set_max_pixels(self, image_processor, max_pixels):
        """`num_crops` becomes as many tiles as `max_pixels` can fill. Raises ValueError for less than one."""
        tile = _tile_pixels(image_processor)
        if max_pixels < tile:
            raise ValueError(f"max_pixels={max_pixels} is less than one tile of Phi-3-Vision: {tile} pixels")
        image_processor.num_crops = max_pixels // tile

    def caps(self, image_processor):
        return [tiles * _tile_pixels(image_processor) for tiles in range(image_processor.num_crops, 0, -1)]

    def largest_cap(self, processor, images, room):
        """From the sizes alone."""
        own, tile = processor.image_processor, _tile_pixels(processor.image_processor)

        def needed(cap):
            return sum(own.count_tokens(*image.size, cap // tile) for image in images)

        return next((cap for cap in self.caps(own) if needed(cap) <= room), None)

    def as_seen(self, processor, image):
        own = processor.image_processor
        return own.arrange(image), own.count_tokens(*image.size)

    def restart_length(self, config):
        return config.rope_parameters.get("original_max_position_embeddings")

    def vision_inputs(self, model, batch):
        tiles, order = model.get_encoder(modality="image").arrange(batch["pixel_values"], batch["image_sizes"])
        return {"pixel_values": tiles, "order": order}

    def run_vision(self, model, pixel_values, order):
        return [model.get_encoder(modality="image").project(pixel_values, order)]

    def dry_run_inputs(self, config, ids, image_tokens):
        """An image of the most tiles whose tokens, as the image processor counts them, are no more than these."""
        side = config.vision_config.image_size
        lines = side // config.vision_config.patch_size // 2  # of tokens, per tile
        tiles = max(1, (image_tokens - 1) // lines**2 - 1)
        rows = math.isqrt(tiles)
        columns = max(1, ((image_tokens - 1 - (rows + 1) * lines) // lines**2 - 1) // rows)
        ids[:, : (rows * columns + 1) * lines**2 + 1 + (rows + 1) * lines] = config.image_token_id
        return {
            "pixel_values": torch.empty(len(ids), 1 + rows * columns, 3, side, side, device="meta"),
            "image_sizes": torch.tensor([[rows * side, columns * side]] * len(ids)),
        }


def _tile_pixels(image_processor):
    return image_processor.size["height"] * image_processor.size["width"]


PHI_3_VISION = Phi3Vision(
    name="phi-3-vision",
    model_types=("phi3_v",),
    processors=("Phi3VProcessor",),
    id_pattern="phi-3.*vision",
    mixable=True,
    vision=("vision_embed_tokens",),
    projector=("img_projection",),
    # A packed row beyond the short factors' 4,096 tokens would turn the positions of its neighbors, too.
    packable=False,
    has_pixel_cap=True,
    caches_pixels=True,
    not_by_unsloth="it does not have phi3_v",
    not_in_onnx="",
    not_by_transformers_serve="transformers itself has no phi3_v, and its server does not import what adds it",
    not_by_vllm="it reads this model with the code of its publisher, which is not in the folder, and without adapters",
    not_by_ollama="its converter does not have Phi3V",
    same_shape={"phi-3.5-vision": "phi-3-vision"},
    loading_import="import vlmhelpers.families.phi3_vision  # makes the model known to transformers",
    licenses=(("phi-3", {"license": "mit"}, "MIT License"),),
    values={"max_pixels": (4 * 336**2, "num_crops=4: four tiles and the overview, 757 tokens for a square image")},
    tiny_values={
        "learning_rate": (4e-3, "a tiny model needs more: measured"),
        "max_steps": (700, "what the tiny model needs"),
        "max_pixels": (48**2, "num_crops=1: one tile and the overview"),
    },
)
