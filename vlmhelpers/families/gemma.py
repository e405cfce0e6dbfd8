"""Gemma 3 and Gemma 4: the first takes as many tokens for any image, the second as many as asked."""

import math
from dataclasses import dataclass

import torch

from vlmhelpers.families.family import Family
from vlmhelpers.families.tiles import nearly_square

_SOFT_TOKENS = (1120, 560, 280, 140, 70)  # of an image, for Gemma 4
_TURNS = r"<(bos|eos|(start|end)_of_turn|(start|end)_of_image|image_soft_token)>"


@dataclass(frozen=True)
class Gemma3(Family):
    """Tokens of an image see each other: without `token_type_ids` the model computes others, and says nothing."""

    mixable: bool = True
    caches_pixels: bool = True
    not_by_unsloth: str = ""

    def dry_run_inputs(self, config, ids, image_tokens):
        """As many images as have these tokens."""
        images = max(1, image_tokens // config.mm_tokens_per_image)
        ids[:, : images * config.mm_tokens_per_image] = config.image_token_id
        side = config.vision_config.image_size
        return {
            "pixel_values": torch.empty(len(ids) * images, 3, side, side, device="meta"),
            "token_type_ids": (ids == config.image_token_id).long(),
        }


@dataclass(frozen=True)
class Gemma4(Family):
    mixable: bool = True
    has_pixel_cap: bool = True
    not_by_unsloth: str = ""

    def set_max_pixels(self, image_processor, max_pixels):
        """The most tokens of those that it knows. Raises ValueError for less than the fewest."""
        token = _token_pixels(image_processor)
        if max_pixels < _SOFT_TOKENS[-1] * token:
            raise ValueError(f"max_pixels={max_pixels}: Gemma 4 needs {_SOFT_TOKENS[-1] * token} pixels or more")
        image_processor.max_soft_tokens = next(most for most in _SOFT_TOKENS if most * token <= max_pixels)

    def caps(self, image_processor):
        most = image_processor.max_soft_tokens
        return [tokens * _token_pixels(image_processor) for tokens in _SOFT_TOKENS if tokens <= most]

    def dry_run_inputs(self, config, ids, image_tokens):
        """Images of as many tokens each, padded as the image processor does that is set to no fewer."""
        images, vision = math.ceil(image_tokens / (_SOFT_TOKENS[0] + 2)), config.vision_config
        tokens = min(image_tokens // images, _SOFT_TOKENS[0])
        pool, most = vision.pooling_kernel_size, min(soft for soft in _SOFT_TOKENS if soft >= tokens)
        ids[:, : images * tokens] = config.image_token_id
        places = _places(tokens, pool, most * pool**2).expand(len(ids) * images, -1, -1)
        numbers = 3 * vision.patch_size**2
        return {
            "pixel_values": torch.empty(*places.shape[:2], numbers, device="meta"),
            "image_position_ids": places,
            "mm_token_type_ids": (ids == config.image_token_id).long(),
        }


def _places(tokens, pool, patches):
    """(patches, 2): columns and rows of the patches of an image of so many tokens, and -1 for padding."""
    rows, columns = (pool * side for side in nearly_square(tokens))
    places = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).flip(-1)
    return torch.nn.functional.pad(places, (0, 0, 0, patches - len(places)), value=-1)


def _token_pixels(image_processor):
    return (image_processor.patch_size * image_processor.pooling_kernel_size) ** 2


_GEMMA = (
    {"license": "gemma"},
    "Gemma Terms of Use: they go on with the model, and so does the list of prohibited uses",
)

GEMMA_3 = Gemma3(
    name="gemma-3",
    model_types=("gemma3",),
    processors=("Gemma3Processor",),
    id_pattern=r"gemma-3-(4|12|27)b",  # the others have no images
    control_tokens=_TURNS,
    turns=("s?([ui][ac])+", "user and assistant have to alternate, after one system turn or none"),
    packable=True,
    gguf_architectures=("Gemma3ForConditionalGeneration",),
    llama_factory="gemma3",
    swift="gemma3_vision",
    licenses=(
        ("gemma-3-", *_GEMMA),
        ("medgemma", {"license": "other"}, "Health AI Developer Foundations Terms of Use"),
    ),
)
GEMMA_4 = Gemma4(
    name="gemma-4",
    model_types=("gemma4",),
    processors=("Gemma4Processor",),
    id_pattern=r"gemma-4-",
    control_tokens=r"<(bos|eos|turn\||channel\||tool_call\||tool_response\||image\||audio\|)>",
    turns=("(?!.*[ac]a).*", "an answer does not follow another"),
    packable=True,
    gguf_architectures=("Gemma4ForConditionalGeneration",),
    llama_factory="gemma4n",
    swift="gemma4",
    licenses=(("gemma-4-", {"license": "apache-2.0"}, "Apache License 2.0"),),
)
