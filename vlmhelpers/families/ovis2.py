"""Ovis2 in the form of transformers: tiles, whose patches become mixtures of the rows of a visual embedding table."""

from dataclasses import dataclass

from vlmhelpers.families.tiles import TiledFamily


@dataclass(frozen=True)
class Ovis2(TiledFamily):
    def tokens_per_tile(self, config):
        vision = config.vision_config
        return (vision.image_size // vision.patch_size // vision.hidden_stride) ** 2

    def caps(self, image_processor):
        """One tile, where the image processor does not cut."""
        found = super().caps(image_processor)
        return found if image_processor.crop_to_patches else found[-1:]


OVIS2 = Ovis2(
    name="ovis2",
    model_types=("ovis2",),
    processors=("Ovis2Processor",),
    id_pattern=r"ovis2-\d+b-hf",  # the publisher's own ids need its code
    projector=("head_linear", "head_norm"),  # inside of what transformers gives as the encoder
    control_tokens=r"<IMG_(ATOM|START|GRID|COL|ROW|END)>",
    packable=True,
    not_by_vllm="it has Ovis2 only with the code of its publisher, and asks others for a count that this one lacks",
    not_by_ollama="its converter does not have Ovis2",
    licenses=(("ovis2-", {"license": "apache-2.0"}, "Apache License 2.0"),),
    values={"max_pixels": (6 * 448**2, "six tiles and the overview, 1,801 tokens: room for text in max_length")},
)
