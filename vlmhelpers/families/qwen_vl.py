"""Qwen2-VL to Qwen3.5: images of any size, whose tokens grow with their pixels."""

from bisect import bisect_right
from dataclasses import dataclass

import torch
from PIL import Image
from torch.nn.functional import scaled_dot_product_attention
from transformers.image_utils import make_flat_list_of_images
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.vision_utils import (
    get_vision_cu_seqlens,
    get_vision_interpolation_indices_and_weights,
    get_vision_position_ids,
    get_vision_window_index,
)

from vlmhelpers.families.family import Family, ImageProcessorStandIn
from vlmhelpers.families.tiles import nearly_square
from vlmhelpers.families.values import USUAL, USUAL_FOR_TEXT

# "flash" in the name is how a vision tower of transformers is asked to hand over all windows at once.
_WINDOWS = "sdpa_of_windows_like_flash"
_MASKED = "sdpa_with_a_mask_like_flash"  # the same, for any number of windows in one graph
# Beside the features themselves, Qwen3-VL hands on those of earlier layers.
_DEEP = "deepstack_features"


class _Grids(ImageProcessorStandIn):
    """Computes no pixels, only into how many patches images are cut."""

    def __call__(self, images, **_):
        sizes = [(image.height, image.width, {}) for image in make_flat_list_of_images(images)]
        patches = [self.image_processor.get_number_of_image_patches(*size) for size in sizes]
        return {"image_grid_thw": torch.tensor([[1, 1, number] for number in patches])}


@dataclass(frozen=True)
class QwenVL(Family):
    """What they have in common: one token stands for (patch_size * merge_size) ** 2 pixels after resizing."""

    projector: tuple[str, ...] = ("visual.merger", "visual.deepstack_merger_list")  # inside of what transformers gives
    mixable: bool = True
    has_pixel_cap: bool = True
    caches_pixels: bool = True
    caches_features: bool = True
    not_by_unsloth: str = ""

    def prepare(self, model):
        group_windows(model)

    # Features of a frozen vision tower, image by image

    def feature_tower(self, model):
        return next(module for name, module in model.named_modules() if name.rpartition(".")[2] == "visual")

    def split_pixels(self, hidden_states, grid_thw):
        """The tower's arguments cut apart: (patches, grid) of each image."""
        shapes = grid_thw.tolist()
        return list(zip(hidden_states.split([t * h * w for t, h, w in shapes]), shapes, strict=True))

    def split_features(self, tower, output, grid_thw):
        """The tower's output cut apart: a dict of tensors for each image."""
        tokens = (grid_thw.prod(-1) // tower.spatial_merge_size**2).tolist()
        deep = {f"{_DEEP}.{i}": layer for i, layer in enumerate(getattr(output, _DEEP, None) or [])}
        parts = {name: whole.split(tokens) for name, whole in ({"features": output.pooler_output} | deep).items()}
        return [dict(zip(parts, values, strict=True)) for values in zip(*parts.values(), strict=True)]

    def join_features(self, stored, device):
        """What `split_features` cut apart, as the output that the model reads."""
        joined = {name: torch.cat([features[name] for features in stored]).to(device) for name in stored[0]}
        output = BaseModelOutputWithPooling(pooler_output=joined.pop("features"))
        if joined:
            output[_DEEP] = [joined[f"{_DEEP}.{i}"] for i in range(len(joined))]
        return output

    # Image tokens and the cap on pixels

    size_reader = _Grids

    def set_max_pixels(self, image_processor, max_pixels):
        shortest = min(dict(image_processor.size)["shortest_edge"], max_pixels)
        image_processor.size = {"shortest_edge": shortest, "longest_edge": max_pixels}

    def max_pixels(self, image_processor):
        return dict(image_processor.size or {}).get("longest_edge")

    def largest_cap(self, processor, images, room):
        """Found from the sizes alone, with the processor's own resizing rule.

        An image that has to shrink counts with all tokens that the cap allows: another shape may need them.
        """
        image_processor = processor.image_processor
        merge = image_processor.merge_size
        pixels = (image_processor.patch_size * merge) ** 2
        shortest, longest = image_processor.size["shortest_edge"], image_processor.size["longest_edge"]

        def tokens(image, least, most):
            limits = {"min_pixels": least, "max_pixels": most}
            return image_processor.get_number_of_image_patches(image.height, image.width, limits) // merge**2

        now = [tokens(image, shortest, longest) for image in images]

        def needed(allowed):
            cap = allowed * pixels
            capped = [tokens(image, min(shortest, cap), cap) for image in images]
            return sum(max(few, min(allowed, many)) for few, many in zip(capped, now, strict=True))

        return bisect_right(range(1, longest // pixels + 1), room, key=needed) * pixels or None

    def as_seen(self, processor, image):
        image_processor = processor.image_processor
        _, rows, columns = image_processor([image], return_tensors="pt")["image_grid_thw"][0].tolist()
        size = (columns * image_processor.patch_size, rows * image_processor.patch_size)
        return image.resize(size, Image.Resampling.BICUBIC), rows * columns // image_processor.merge_size**2

    # Parts of an ONNX export

    not_in_onnx: str = ""

    def positions(self, model, batch):
        given = {name: batch[name] for name in ("input_ids", "attention_mask", "mm_token_type_ids")}
        return model.model.get_rope_index(**given, image_grid_thw=batch.get("image_grid_thw"))[0]

    def vision_inputs(self, model, batch):
        """Pixels, and what follows from the grids of the images, whose loops no exporter can trace."""
        tower, grid = model.model.visual, batch["image_grid_thw"]
        merge = tower.spatial_merge_size
        inputs = {"pixel_values": batch["pixel_values"], "cu_seqlens": get_vision_cu_seqlens(grid)}
        inputs["position_ids"] = get_vision_position_ids(grid, merge)
        if hasattr(tower, "window_size"):
            windows = get_vision_window_index(grid, merge, tower.window_size, tower.patch_size)
            return inputs | dict(zip(("window_index", "cu_window_seqlens"), windows, strict=True))
        options = {"mode": tower.interpolation_mode, "align_corners": tower.interpolation_align_corners}
        options |= {"spatial_merge_size": merge}
        resampled = get_vision_interpolation_indices_and_weights(grid, tower.num_grid_per_side, **options)
        return inputs | dict(zip(("interp_indices", "interp_weights"), resampled, strict=True))

    def run_vision(self, model, pixel_values, **inputs):
        tower = model.model.visual
        ALL_ATTENTION_FUNCTIONS.register(_MASKED, attend_with_mask)
        tower.config._attn_implementation = _MASKED
        # Lengths that this attention does not ask for, and that would have to be read from tensors.
        output = tower(pixel_values, None, max_seqlen=0, max_window_seqlen=0, **inputs)
        return [output.pooler_output, *output.get(_DEEP, [])]

    def run_decoder(self, model, deep, **inputs):
        decoder = model.get_decoder()
        if not deep:
            return decoder(**inputs)
        # In place of an index by a mask, whose number of places depends on values.
        decoder._deepstack_process = lambda states, mask, more: states + more
        return decoder(**inputs, deepstack_visual_embeds=deep)

    # Estimates on the meta device

    def dry_run_inputs(self, config, ids, image_tokens):
        """An image as near to a square as its tokens allow."""
        rows, columns = nearly_square(image_tokens)
        vision, merge = config.vision_config, config.vision_config.spatial_merge_size
        numbers = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
        ids[:, :image_tokens] = config.image_token_id
        return {
            "pixel_values": torch.empty(len(ids) * image_tokens * merge**2, numbers, device="meta"),
            "image_grid_thw": torch.tensor([[1, merge * rows, merge * columns]] * len(ids)),
            "mm_token_type_ids": (ids == config.image_token_id).long(),
        }


def group_windows(model):
    """Makes sdpa attention attend to all windows of a length at once, where transformers (5.17) loops over them.

    Qwen2.5-VL's windows hold at most 64 patches, so a photo has hundreds; outputs stay the same to rounding. Returns
    whether it applies: not without windows, nor to other kinds of attention.
    """
    tower = getattr(getattr(model, "base_model", model), "visual", None)
    config = getattr(tower, "config", None)
    if not hasattr(config, "fullatt_block_indexes") or config._attn_implementation not in ("sdpa", _WINDOWS):
        return False
    ALL_ATTENTION_FUNCTIONS.register(_WINDOWS, attend_in_groups)
    config._attn_implementation = _WINDOWS
    return True


def attend_in_groups(module, query, key, value, attention_mask=None, *, cu_seq_lens_q, scaling, dropout=0.0, **_):
    """Attention within windows, whose borders in patches are `cu_seq_lens_q`, as transformers' attention functions.

    (1, heads, patches, head size) of query, key and value -> (output (1, patches, heads, head size), None).
    """
    starts, lengths = cu_seq_lens_q[:-1], cu_seq_lens_q.diff()
    indices, outputs = [], []
    for length in lengths.unique().tolist():
        index = starts[lengths == length][:, None] + torch.arange(length, device=starts.device)
        windows = (states[0].transpose(0, 1)[index].transpose(1, 2) for states in (query, key, value))
        output = scaled_dot_product_attention(*windows, dropout_p=dropout, scale=scaling)
        indices.append(index.flatten())
        outputs.append(output.transpose(1, 2).flatten(0, 1))
    return torch.cat(outputs)[torch.cat(indices).argsort()][None], None


def attend_with_mask(module, query, key, value, attention_mask=None, *, cu_seq_lens_q, scaling, **_):
    """As `attend_in_groups`, with a mask of patches x patches instead of groups, which depend on values."""
    window = (torch.arange(query.shape[2])[:, None] >= cu_seq_lens_q).sum(1)
    output = scaled_dot_product_attention(query, key, value, window[:, None] == window, scale=scaling)
    return output.transpose(1, 2), None


_APACHE = ({"license": "apache-2.0"}, "Apache License 2.0")
_RESEARCH = ({"license": "other", "license_name": "qwen-research"}, "Qwen Research License: no commercial use")

_NOT_IN_ONNX = "its parts were not exported yet"

_SYSTEM_FIRST = "s?[^s]+", "a system turn has to be the first"

QWEN2_VL = QwenVL(
    name="qwen2-vl",
    model_types=("qwen2_vl",),
    processors=("Qwen2VLProcessor",),
    id_pattern="qwen2-vl",
    # As of Qwen2.5-VL below.
    packable=False,
    gguf_architectures=("Qwen2VLForConditionalGeneration",),
    not_by_ollama="its converter does not have Qwen2-VL",
    llama_factory="qwen2_vl",
    swift="qwen2_vl",
    not_in_onnx=_NOT_IN_ONNX,
    licenses=(("qwen2-vl-72b", {"license": "other", "license_name": "qwen"}, "Qwen License"), ("qwen2-vl-", *_APACHE)),
)
QWEN2_5_VL = QwenVL(
    name="qwen2.5-vl",
    model_types=("qwen2_5_vl",),
    processors=("Qwen2_5_VLProcessor",),
    id_pattern="qwen2.5-vl",
    # The model drops the position ids before it builds the mask, so packed rows see each other (transformers 5.17).
    packable=False,
    gguf_architectures=("Qwen2_5_VLForConditionalGeneration",),
    llama_factory="qwen2_vl",
    swift="qwen2_5_vl",
    licenses=(
        ("qwen2.5-vl-3b", *_RESEARCH),
        ("qwen2.5-vl-72b", {"license": "other", "license_name": "qwen"}, "Qwen License"),
        ("qwen2.5-vl-", *_APACHE),
    ),
    guide_gigabytes={"Qwen2.5-VL-3B": (6, 12), "Qwen2.5-VL-7B": (10, 28), "Qwen2.5-VL-72B": (45, 144)},
)
QWEN3_VL = QwenVL(
    name="qwen3-vl",
    model_types=("qwen3_vl",),
    processors=("Qwen3VLProcessor",),
    turns=_SYSTEM_FIRST,
    id_pattern=r"qwen3-vl-(?!\d+b-a\d)",  # those are mixtures of experts
    packable=True,
    gguf_architectures=("Qwen3VLForConditionalGeneration",),
    llama_factory="qwen3_vl_nothink",
    swift="qwen3_vl",
    licenses=(("qwen3-vl-", *_APACHE),),
    tiny_values_for_text={
        "learning_rate": (5e-3, "a tiny model needs more: measured"),
        "lora_r": (16, "enough: measured"),
        "lora_alpha": (16, "as lora_r: a scale of 1"),
        "max_steps": (360, "what the tiny model needs"),
        "replay": USUAL_FOR_TEXT["replay"],
        "warmup_steps": (10, "usual"),
        "adam_beta2": USUAL["adam_beta2"],
        "max_grad_norm": USUAL["max_grad_norm"],
    },
)
QWEN3_VL_MOE = QwenVL(
    name="qwen3-vl-moe",
    model_types=("qwen3_vl_moe",),
    processors=("Qwen3VLProcessor",),
    turns=_SYSTEM_FIRST,
    id_pattern=r"qwen3-vl-\d+b-a\d",
    packable=True,
    gguf_architectures=("Qwen3VLMoeForConditionalGeneration",),
    llama_factory="qwen3_vl_nothink",
    not_in_onnx=_NOT_IN_ONNX,
    licenses=(("qwen3-vl-", *_APACHE),),
)
QWEN3_5 = QwenVL(
    name="qwen3.5",
    model_types=("qwen3_5",),
    processors=("Qwen3VLProcessor",),
    turns=("s?c*[ui][uic]*a", "one answer is learned at a time, after a question; a system turn has to be the first"),
    id_pattern=r"qwen3\.5-\d+(\.\d+)?b(?!-a\d)",
    # Its linear attention runs over the borders of packed rows.
    packable=False,
    gguf_architectures=("Qwen3_5ForConditionalGeneration",),
    llama_factory="qwen3_5",
    swift="qwen3_5",
    not_in_onnx=_NOT_IN_ONNX,
    licenses=(("qwen3.5-", *_APACHE),),
)
