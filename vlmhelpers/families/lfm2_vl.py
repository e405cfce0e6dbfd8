"""LFM2-VL: a small image keeps its shape, a larger one is cut into tiles with a small overview."""

import math
from dataclasses import dataclass

import torch

from vlmhelpers.families.family import Family
from vlmhelpers.families.tiles import nearly_square

_FEWEST, _MOST = 64, 256  # image tokens of an image that is not cut; a tile has the most


@dataclass(frozen=True)
class Lfm2VL(Family):
    """Two settings of the image processor: how many tiles, and how many tokens an image has that is not cut."""

    mixable: bool = True
    has_pixel_cap: bool = True
    not_by_unsloth: str = ""

    def set_max_pixels(self, image_processor, max_pixels):
        """Tiles for as long as `max_pixels` fill the fewest, else fewer tokens. Raises ValueError for less than one."""
        own, tile, token = image_processor, image_processor.tile_size**2, _token_pixels(image_processor)
        if max_pixels < token:
            raise ValueError(f"max_pixels={max_pixels} is less than one image token of LFM2-VL: {token} pixels")
        own.do_image_splitting = max_pixels >= own.min_tiles * tile
        own.max_tiles = max(own.min_tiles, max_pixels // tile)
        own.max_image_tokens = min(max_pixels, tile) // token
        own.min_image_tokens = min(own.min_image_tokens, own.max_image_tokens)

    def caps(self, image_processor):
        own, tile = image_processor, image_processor.tile_size**2
        tiles = range(own.max_tiles, own.min_tiles - 1, -1) if own.do_image_splitting else ()
        halves = [own.max_image_tokens >> n for n in range(own.max_image_tokens.bit_length())]
        tokens = [own.max_image_tokens, *(number for number in halves[1:] if number >= _FEWEST)]
        return [number * tile for number in tiles] + [number * _token_pixels(own) for number in tokens]

    def dry_run_inputs(self, config, ids, image_tokens):
        """Tiles of the most tokens, each with one that names its place, and a last one with the rest."""
        crops = math.ceil(image_tokens / (_MOST + 2))
        tokens, merge = min(_MOST * crops, image_tokens), config.downsample_factor
        ids[:, :tokens] = config.image_token_id
        parts = [_MOST] * (crops - 1) + [tokens - _MOST * (crops - 1)]
        shapes = merge * torch.tensor([nearly_square(part) for part in parts] * len(ids))
        patches = _MOST * merge**2
        numbers = config.vision_config.num_channels * config.vision_config.patch_size**2
        return {
            "pixel_values": torch.empty(len(shapes), patches, numbers, device="meta"),
            "pixel_attention_mask": (torch.arange(patches) < shapes.prod(-1, keepdim=True)).long(),
            "spatial_shapes": shapes,
        }


def _token_pixels(image_processor):
    return (image_processor.encoder_patch_size * image_processor.downsample_factor) ** 2


LFM2_VL = Lfm2VL(
    name="lfm2-vl",
    model_types=("lfm2_vl",),
    processors=("Lfm2VlProcessor",),
    id_pattern=r"lfm2(\.\d)?-vl-",
    # Its short convolutions run over the borders of packed rows.
    packable=False,
    gguf_architectures=("Lfm2VlForConditionalGeneration",),
    llama_factory="lfm2_vl",
    licenses=(
        (
            "lfm2",
            {"license": "other", "license_name": "lfm1.0"},
            "LFM Open License 1.0: free below 10 million dollars a year",
        ),
    ),
    values={
        "max_pixels": (6 * 512**2, "six tiles and the overview, at most 1,801 tokens: room for text in max_length")
    },
)
