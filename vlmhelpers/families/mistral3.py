"""Mistral Small 3.1 and 3.2, Ministral 3 and Pixtral: images of any size, each row of tokens with its end."""

import math
from dataclasses import dataclass

import torch

from vlmhelpers.families.family import Family

_STEPS = 12  # sides that are tried for a cap


@dataclass(frozen=True)
class Mistral3(Family):
    """The cap is a side: an image whose longer one is longer is made smaller; others stay as they are."""

    mixable: bool = True
    has_pixel_cap: bool = True
    not_by_unsloth: str = ""

    def set_max_pixels(self, image_processor, max_pixels):
        """The side of a square of `max_pixels`, in whole tokens. Raises ValueError for less than one."""
        token, side = _token(image_processor), math.isqrt(max_pixels)
        if side < token:
            raise ValueError(f"max_pixels={max_pixels} is less than one image token of {self.name}: {token**2} pixels")
        if side != _side(image_processor):  # one that is set stays as it is
            image_processor.size = {"longest_edge": side // token * token}

    def caps(self, image_processor):
        side, token = _side(image_processor), _token(image_processor)
        smaller = [side * step // _STEPS // token * token for step in range(_STEPS - 1, 0, -1)]
        return [length**2 for length in dict.fromkeys([side, *smaller]) if length]

    def dry_run_inputs(self, config, ids, image_tokens):
        """An image of as many rows as columns, and the end of each row beside its tokens."""
        rows = max(1, math.isqrt(image_tokens))
        columns = max(1, image_tokens // rows - 1)
        cell = config.vision_config.patch_size * getattr(config, "spatial_merge_size", 1)
        ids[:, : rows * columns] = config.image_token_id
        return {
            "pixel_values": torch.empty(len(ids), 3, rows * cell, columns * cell, device="meta"),
            "image_sizes": torch.tensor([[rows * cell, columns * cell]] * len(ids)),
        }


def _side(image_processor):
    return dict(image_processor.size)["longest_edge"]


def _token(image_processor):
    """The side of an image token in pixels: two patches are merged, and where none are, that is a round number, too."""
    patch = image_processor.patch_size
    return 2 * (patch if isinstance(patch, int) else dict(patch)["height"])


MISTRAL_3 = Mistral3(
    name="mistral-3",
    model_types=("mistral3", "pixtral"),
    processors=("PixtralProcessor",),
    id_pattern=r"mistral-small-3\.[12]|ministral-3-|pixtral-",
    control_tokens=r"\[/?[A-Z_]+\]|</?s>|<(unk|pad)>",
    turns=("[^s]+", "Pixtral's chat template leaves a system turn out"),
    packable=True,
    gguf_architectures=("Mistral3ForConditionalGeneration",),
    llama_factory="mistral_small",
    licenses=(
        ("pixtral-large", {"license": "other", "license_name": "mrl"}, "Mistral Research License: no commercial use"),
        *(
            (name, {"license": "apache-2.0"}, "Apache License 2.0")
            for name in ("mistral-small-3", "ministral-3-", "pixtral-12b")
        ),
    ),
    values={"max_pixels": (1148**2, "a side of 1,148 pixels, 1,763 tokens for a square: room for text in max_length")},
)
