"""Llama 3.2 Vision (Mllama): images take no tokens, the text attends to them through cross-attention."""

import math
from dataclasses import dataclass

import torch
from PIL import Image

from vlmhelpers.families.family import Family


@dataclass(frozen=True)
class LlamaVision(Family):
    """Where images are masked, transformers (5.17, issue 39379) adds the average of all image features all the same.

    So rows with and without images are not mixed, and the empty image slots of a batch are filled.
    """

    def blank_image(self, size):
        return Image.new("RGB", (8, 8))  # an image of any size takes one mark in the text

    def complete_batch(self, batch, counts):
        """The empty image slots of each row filled by its own images over again, and masked.

        With slots that are a multiple of each count, the average is that over the row's own images, as when alone.
        """
        if not any(counts):
            return batch
        slots = math.lcm(*counts)
        order = torch.tensor([[slot % count for slot in range(slots)] for count in counts])
        for name in ("pixel_values", "aspect_ratio_ids", "aspect_ratio_mask"):
            batch[name] = batch[name][torch.arange(len(counts))[:, None], order]
        more = slots - batch["cross_attention_mask"].shape[2]
        batch["cross_attention_mask"] = torch.nn.functional.pad(batch["cross_attention_mask"], (0, 0, 0, more))
        return batch

    def states_per_image(self, config):
        """The patches of an image, and one more per tile: the same for an image of any size."""
        vision = config.vision_config
        return vision.max_num_tiles * ((vision.image_size // vision.patch_size) ** 2 + 1)

    def dry_run_inputs(self, config, ids, image_tokens):
        """As many images as have these states: each is padded to the most tiles."""
        rows, vision = len(ids), config.vision_config
        shape = (rows, math.ceil(image_tokens / self.states_per_image(config)), vision.max_num_tiles)
        return {
            "pixel_values": torch.empty(*shape, 3, vision.image_size, vision.image_size, device="meta"),
            "aspect_ratio_ids": torch.ones(shape[:2], dtype=torch.long),
            "aspect_ratio_mask": torch.ones(shape, dtype=torch.long),
            "cross_attention_mask": torch.ones((*ids.shape, *shape[1:]), dtype=torch.long),
        }


_LICENSE = ({"license": "llama3.2"}, "Llama 3.2 Community License: its name has to stay, and so has its notice")

LLAMA_3_2_VISION = LlamaVision(
    name="llama-3.2-vision",
    model_types=("mllama",),
    processors=("MllamaProcessor",),
    id_pattern="llama-3.2.*vision",
    turns=("s[^i]*|[^s].*", "a system turn does not go with images"),
    packable=True,
    images_in_sequence=False,
    caches_pixels=True,
    not_by_unsloth="",
    not_in_onnx="its text attends to its images, which are no embeddings between those of the text",
    not_sampled="TRL's trainers that sample do not pass its cross_attention_mask and aspect_ratio_ids on",
    not_by_vllm="it dropped Mllama after version 0.10.2",
    llama_factory="mllama",
    swift="llama3_2_vision",
    licenses=(("llama-3.2", *_LICENSE),),
    values={"max_length": (1024, "tokens of text: images take none of the sequence")},
    tiny_values={
        "learning_rate": (5e-3, "a tiny model needs more: measured"),
        "lora_r": (16, "enough: measured"),
        "lora_alpha": (16, "as lora_r: a scale of 1"),
        "batch_size": (8, "fits any machine"),
    },
)
