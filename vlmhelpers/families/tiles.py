"""Images that are cut into tiles of one size: each tile, and the overview beside them, takes as many tokens."""

from dataclasses import dataclass

import torch

from vlmhelpers.families.family import Family


@dataclass(frozen=True)
class TiledFamily(Family):
    """`max_patches` of the image processor is the most tiles of an image; one that is a single tile has no overview."""

    mixable: bool = True
    has_pixel_cap: bool = True
    caches_pixels: bool = True
    not_by_unsloth: str = ""

    def tokens_per_tile(self, config) -> int:
        """The image tokens of a tile."""
        raise NotImplementedError

    def set_max_pixels(self, image_processor, max_pixels):
        """As many tiles as `max_pixels` can fill. Raises ValueError for less than one."""
        image_processor.max_patches = count_tiles(max_pixels, tile_pixels(image_processor))

    def caps(self, image_processor):
        return [tiles * tile_pixels(image_processor) for tiles in range(image_processor.max_patches, 0, -1)]

    def dry_run_inputs(self, config, ids, image_tokens):
        """As many tiles as have these tokens, the overview among them."""
        tokens, size = self.tokens_per_tile(config), config.vision_config.image_size
        tiles = max(1, image_tokens // tokens)
        ids[:, : tiles * tokens] = config.image_token_id
        sides = size if isinstance(size, (list, tuple)) else (size, size)
        return {"pixel_values": torch.empty(len(ids) * tiles, 3, *sides, device="meta")}


def tile_pixels(image_processor) -> int:
    """The pixels of a tile."""
    size = dict(image_processor.size)
    return size["height"] * size["width"]


def count_tiles(max_pixels: int, tile: int) -> int:
    """How many tiles of `tile` pixels fit into `max_pixels`. Raises ValueError for less than one."""
    if max_pixels < tile:
        raise ValueError(f"max_pixels={max_pixels} is less than one tile: {tile} pixels")
    return max_pixels // tile


def nearly_square(number: int) -> tuple[int, int]:
    """(rows, columns) of a grid of `number` cells, as near to a square as that allows."""
    rows = max(side for side in range(1, int(number**0.5) + 1) if number % side == 0)
    return rows, number // rows
