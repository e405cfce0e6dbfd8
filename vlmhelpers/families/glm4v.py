"""GLM-4.1V: images of any size, as in Qwen-VL, with its own template and its own way of counting pixels."""

import re
from dataclasses import dataclass

from vlmhelpers.families.family import Family
from vlmhelpers.families.qwen_vl import QwenVL

# The published template prints the parts of an answer as Python does, and ends no answer: in training the header of the
# next turn did.
_CONTENT = r"{{ \1 if \1 is string else \1 | map(attribute='text') | join }}"
_END = "{% if messages[-1].role == 'assistant' %}<|user|>{% endif %}"


@dataclass(frozen=True)
class Glm4V(QwenVL):
    """Its image processor counts the pixels of both frames that an image is made into."""

    projector: tuple[str, ...] = ("visual.merger", "visual.downsample")
    not_in_onnx: str = "its vision tower was not cut apart yet"

    def repair_template(self, template):
        """Answers as text, and the token behind the last one that the model ends its answers with."""
        template = re.sub(r"\{\{ *(\w+\.content) *\}\}", _CONTENT, template)
        return template if _END in template else re.sub(r"(?=\{%-? *if add_generation_prompt)", _END, template, count=1)

    def set_max_pixels(self, image_processor, max_pixels):
        frames = image_processor.temporal_patch_size
        shortest = min(dict(image_processor.size)["shortest_edge"], frames * max_pixels)
        image_processor.size = {"shortest_edge": shortest, "longest_edge": frames * max_pixels}

    def max_pixels(self, image_processor):
        return dict(image_processor.size)["longest_edge"] // image_processor.temporal_patch_size

    def caps(self, image_processor):
        """Each seven tenths of the one before, in whole tokens."""
        token = (image_processor.patch_size * image_processor.merge_size) ** 2
        tokens = [int(self.max_pixels(image_processor) / token * 2 ** (-step / 2)) for step in range(12)]
        return [number * token for number in dict.fromkeys(tokens) if number]

    largest_cap = Family.largest_cap


GLM_4V = Glm4V(
    name="glm-4v",
    model_types=("glm4v",),
    processors=("Glm4vProcessor",),
    id_pattern=r"glm-4\.1v",
    # The model drops the position ids before it builds the mask, so packed rows see each other (transformers 5.17).
    packable=False,
    not_by_ollama="its converter does not have GLM-4V",
    gguf_architectures=("Glm4vForConditionalGeneration",),
    llama_factory="glm4v",
    swift="glm4v",
    licenses=(("glm-4.1v", {"license": "mit"}, "MIT License"),),
)
