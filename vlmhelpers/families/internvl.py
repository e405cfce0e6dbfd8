"""InternVL 2.5, 3 and 3.5 in the form of transformers (ids that end with -hf): up to twelve tiles and an overview."""

from dataclasses import dataclass

from vlmhelpers.families.tiles import TiledFamily


@dataclass(frozen=True)
class InternVL(TiledFamily):
    """Its processor cuts into tiles even where its image processor says not to (transformers 5.17)."""

    def tokens_per_tile(self, config):
        return config.image_seq_length


INTERNVL = InternVL(
    name="internvl",
    model_types=("internvl",),
    processors=("InternVLProcessor",),
    id_pattern=r"internvl[\d_.]+-.*-hf",  # without it, the code of its publisher is needed
    packable=True,
    not_by_ollama="its converter does not have InternVL",
    llama_factory="intern_vl",
    # Those of InternVL 2.5 and 3 also depend on the language model inside.
    licenses=(("internvl3_5-", {"license": "apache-2.0"}, "Apache License 2.0"),),
    values={"max_pixels": (6 * 448**2, "six tiles and the overview, 1,794 tokens: room for text in max_length")},
)
