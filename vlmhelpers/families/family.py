"""What differs from one model architecture to another, as one object; what transformers can tell is derived here."""

import copy
import math
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from PIL import Image
from transformers import PreTrainedModel

from vlmhelpers.common.environment import data_dir
from vlmhelpers.families.towers import derive_towers
from vlmhelpers.families.values import TINY, TINY_BY_METHOD, USUAL, USUAL_BY_METHOD, USUAL_FOR_TEXT

TOWERS = ("vision", "projector", "language", "head")  # what may be trained; some models have "audio", too
_TURNS = [{"role": role, "content": [{"type": "text", "text": "Yes."}]} for role in ("user", "assistant")]
_END = "{% if messages[-1].role == 'assistant' %}{{ eos_token }}{% endif %}"
UNKNOWN_LICENSE = ({}, "not known here: look it up on the page of the base")
TINY_LICENSE = ({"license": "apache-2.0"}, "Apache License 2.0, as this project's tiny bases are")


@dataclass(frozen=True)
class Family:
    """One model architecture; this class is the generic one, for what nobody has described by hand.

    name: also of the folder of its tiny base, where it has one. model_types: as in config.json. processors: the names
        of their classes. id_pattern: a regular expression for what marks the id of a model on the hub, in lower case.
    vision, projector, audio, head: the modules of these towers: their names, alone or with those of the modules around
        them. `for_model` finds them; by hand only where transformers does not know: a projector inside the encoder.
    not_quantized: names of modules inside the decoder that 4 bits break. router: those that choose experts, or the
        tokens that are attended to, and what holds such ones: a choice has no gradient.
    control_tokens: a regular expression for special tokens that no text may hold, and that neither the chat template
        nor the processor names.
    turns: a regular expression for the turns that its published chat templates let learn, with a letter for each: s for
        the system's, i for the user's with images, u for another of the user's, a for an answer to learn and c for one
        that is not; and a sentence that says so. ("", ""): all.
    packable: rows packed into one sequence do not see each other.
    mixable: a batch may have rows with and without images.
    several_images: "" where its published models were trained for several images in a row, else a sentence.
    images_in_sequence: an image takes tokens of the sequence; elsewhere the text attends to it.
    has_pixel_cap: fewer pixels make fewer image tokens, and `set_max_pixels` can ask for them.
    caches_pixels: a batch has its images one after another, or in slots for each row, so that pixels can be stored.
    caches_features: its tower computes each image by itself; it has `feature_tower`, `split_...`, `join_features`.
    not_sampled: why the trainers of TRL that sample answers cannot train it; "" where they pass its images on.
    not_by_unsloth: why Unsloth does not run it; "" where it does. gguf_architectures: what llama.cpp's converter has.
    not_by_transformers_serve, not_by_vllm, not_by_ollama: why they do not serve its models from a folder; "" where they
        do, or nobody knows.
    llama_factory, swift: its template in LLaMA-Factory, and in ms-swift, where it is its type, too; "" where they have
        none, or nobody has tried it.
    not_in_onnx: why it cannot be exported to ONNX; "" where its methods below say how.
    loading_import: the import that makes it known to transformers.
    licenses: (part of a model's id, metadata for a card of the hub, a sentence), the first that fits.
    same_shape: parts of ids, and the published names that have the same shape.
    guide_gigabytes: GPU memory in GB by its guide, by model: (4 bits, "full").
    values, tiny_values, tiny_values_for_text: name -> (value, reason) that suit its published models and its tiny base,
        for rows with images and without, where `families/values.py` has others.
    """

    name: str = "generic"
    model_types: tuple[str, ...] = ()
    processors: tuple[str, ...] = ()
    id_pattern: str = ""
    vision: tuple[str, ...] = ()
    projector: tuple[str, ...] = ()
    audio: tuple[str, ...] = ()
    head: tuple[str, ...] = ("lm_head",)
    not_quantized: tuple[str, ...] = ()
    router: tuple[str, ...] = (
        *("router", "gate", "shared_expert_gate", "modality_router", "wg"),
        *("indexer", "index_qk_proj"),
    )
    control_tokens: str = ""
    turns: tuple[str, str] = ("", "")
    packable: bool = False
    mixable: bool = False
    several_images: str = ""
    images_in_sequence: bool = True
    has_pixel_cap: bool = False
    caches_pixels: bool = False
    caches_features: bool = False
    not_sampled: str = ""
    not_by_unsloth: str = "nobody has tried it there"
    gguf_architectures: tuple[str, ...] = ()
    not_by_transformers_serve: str = ""
    not_by_vllm: str = ""
    not_by_ollama: str = ""
    llama_factory: str = ""
    swift: str = ""
    not_in_onnx: str = "how its parts are cut and joined is not known here"
    loading_import: str = ""
    licenses: tuple[tuple[str, dict, str], ...] = ()
    same_shape: dict[str, str] = field(default_factory=dict)
    guide_gigabytes: dict[str, tuple[int, int]] = field(default_factory=dict)
    values: dict[str, tuple[object, str]] = field(default_factory=dict)
    tiny_values: dict[str, tuple[object, str]] = field(default_factory=dict)
    tiny_values_for_text: dict[str, tuple[object, str]] = field(default_factory=dict)

    # Names, files and licenses

    def is_meant_by(self, model_id: str) -> bool:
        """Whether the id of a model on the hub, in lower case, is one of this family."""
        return bool(self.id_pattern and re.search(self.id_pattern, model_id))

    def tiny_base(self) -> Path:
        """The folder of the tiny base. Raises FileNotFoundError where there is none."""
        folder = data_dir() / "tiny" / self.name
        if not (folder / "config.json").is_file():
            raise FileNotFoundError(f"{folder} holds no model: make it with `python tools/pretrain.py {self.name}`")
        return folder

    def license_of(self, base: str) -> tuple[dict, str]:
        """The license of a base by its hub id or the family's name: (metadata for a card, a sentence)."""
        if base == self.name:
            return TINY_LICENSE
        return next((entry[1:] for entry in self.licenses if entry[0] in base.lower()), UNKNOWN_LICENSE)

    def suitable_values(
        self, is_tiny: bool, text_only: bool = False, method: str = "sft"
    ) -> dict[str, tuple[object, str]]:
        """name -> (value, reason) for a training run of adapters by a method, one of `training.methods.METHODS`."""
        if is_tiny:
            of_text = self.tiny_values_for_text if text_only else {}
            return TINY | self.tiny_values | of_text | TINY_BY_METHOD.get(method, {})
        return USUAL | self.values | (USUAL_FOR_TEXT if text_only else {}) | USUAL_BY_METHOD.get(method, {})

    # Towers

    def tower_of(self, name: str) -> str:
        """The tower, one of `TOWERS` or "audio", of a module or parameter by its full name."""
        dotted = f".{name}."
        for tower in ("projector", "vision", "audio", "head"):  # a projector may be inside of vision
            if any(f".{module}." in dotted for module in getattr(self, tower)):
                return tower
        return "language"

    def is_adapted(self, name: str) -> bool:
        """Whether adapters may go onto the linear layer of that name: not where it chooses experts, or tokens."""
        return not {*name.split(".")[-2:]} & {*self.router}

    def is_quantized(self, name: str) -> bool:
        """Whether the linear layer of that name has 4 bits in a model of 4 bits: those of the decoder that bear it."""
        kept = any(f".{module}." in f".{name}." for module in self.not_quantized)
        return self.tower_of(name) == "language" and self.is_adapted(name) and not kept

    def for_model(self, model: PreTrainedModel) -> "Family":
        """This family with the towers of `model`, where they are not described by hand."""
        if self.vision:
            return self
        found = derive_towers(model)
        return replace(self, **found | {"projector": (*self.projector, *found["projector"])})

    def prepare(self, model: PreTrainedModel) -> None:
        """Makes a loaded model compute the same in less time."""

    # Text

    def repair_template(self, template: str) -> str:
        """A published chat template as it can be trained with."""
        return template

    def trainable_template(self, processor) -> str | None:
        """The chat template of `processor`, repaired, and with an end of the last answer; None without one text."""
        template = getattr(processor, "chat_template", None)
        if not isinstance(template, str):
            return None
        template = self.repair_template(template)
        with suppress(Exception):  # what a template refuses is said of the row that it refuses
            text = processor.apply_chat_template(_TURNS, chat_template=template, tokenize=False).rstrip()
            last = processor.tokenizer(text, add_special_tokens=False)["input_ids"][-1]
            if last not in processor.tokenizer.added_tokens_decoder:
                return template + _END
        return template

    def placeholder(self, processor, number: int) -> str:
        """What stands for the image of that number, from 1 on, in a text for the processor."""
        return _image_token(processor)

    def image_pattern(self, processor) -> str:
        """A regular expression for what the processor takes for an image in a text."""
        return re.escape(_image_token(processor))

    def takes_turns(self, letters: str) -> bool:
        """Whether its published chat templates let turns be learned, by their letters (see `turns`)."""
        return not self.turns[0] or bool(re.fullmatch(self.turns[0], letters))

    # Image tokens and the cap on pixels

    def size_reader(self, image_processor):
        """A stand-in for `image_processor` that only counts image tokens; None where that takes a blank image."""
        return None

    def blank_image(self, size: tuple[int, int]) -> Image.Image:
        """An image that takes as many tokens as one of `size` (width, height)."""
        return Image.new("RGB", size)

    def count_image_tokens(self, processor, sizes: Sequence[tuple[int, int]]) -> int:
        """The tokens that images of `sizes` (width, height) take together: those of blank images."""
        text = "".join(self.placeholder(processor, number) for number in range(1, len(sizes) + 1))
        images = [[self.blank_image(size) for size in sizes]]
        return len(processor(text=[text], images=images, add_special_tokens=False, return_tensors="pt")["input_ids"][0])

    def set_max_pixels(self, image_processor, max_pixels: int) -> None:
        """Caps the pixels of an image after resizing, in `image_processor` itself. Raises ValueError without a cap."""
        raise ValueError(f"{type(image_processor).__name__} has no pixel cap: its size is {image_processor.size}")

    def caps(self, image_processor) -> list[int]:
        """The values of `max_pixels` that make a difference, from the present one downwards."""
        return []

    def max_pixels(self, image_processor) -> int | None:
        """The cap in force; None without."""
        return next(iter(self.caps(image_processor)), None)

    def largest_cap(self, processor, images: Sequence[Image.Image], room: int) -> int | None:
        """The largest `max_pixels` that brings `images` down to `room` tokens together, or None."""
        sizes, capped = [image.size for image in images], copy.copy(processor)
        capped.image_processor = copy.deepcopy(processor.image_processor)
        for cap in self.caps(processor.image_processor):
            self.set_max_pixels(capped.image_processor, cap)
            if self.count_image_tokens(capped, sizes) <= room:
                return cap
        return None

    def as_seen(self, processor, image: Image.Image) -> tuple[Image.Image, int]:
        """(the image with the pixels that the model gets, its tokens)."""
        cap = self.max_pixels(processor.image_processor)
        scale = min(1, ((cap or math.inf) / (image.width * image.height)) ** 0.5)
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        return image.resize(size, Image.Resampling.BICUBIC), self.count_image_tokens(processor, [image.size])

    # Batches

    def complete_batch(self, batch, counts: list[int]):
        """The processor's batch as the model needs it; `counts` are the images of each row."""
        return batch

    # Parts of an ONNX export. Of `model`, the last two trace the weights, and may change how it computes from then on

    def positions(self, model, batch) -> torch.Tensor:
        """The positions of the tokens of a processor's batch (n, t): (n, t), or (axes, n, t)."""
        return (batch["attention_mask"].cumsum(-1) - 1).clamp(min=0)

    def restart_length(self, config) -> int | None:
        """A number of tokens beyond which the keys of fewer are of no use any more."""
        return None

    def vision_inputs(self, model, batch) -> dict[str, torch.Tensor]:
        """What `run_vision` takes, made of the processor's batch: each grows with the images in its first dimension."""
        raise ValueError(f"{self.name}: {self.not_in_onnx}")

    def run_vision(self, model, **inputs) -> list[torch.Tensor]:
        """[features for the places of the image tokens, *what the decoder adds there later], (tokens, h) each."""
        raise ValueError(f"{self.name}: {self.not_in_onnx}")

    def run_decoder(self, model, deep: Sequence[torch.Tensor], **inputs):
        """The decoder's output. `deep`: what it adds after its first layers, (n, t, h) each."""
        return model.get_decoder()(**inputs)

    # Estimates on the meta device

    @property
    def is_estimated(self) -> bool:
        """Whether a batch with images can be made without the weights."""
        return type(self).dry_run_inputs is not Family.dry_run_inputs

    def states_per_image(self, config) -> int:
        """States besides the tokens of the sequence that the text attends to for an image of any size."""
        return 0

    def dry_run_inputs(self, config, ids: torch.Tensor, image_tokens: int) -> dict[str, torch.Tensor]:
        """What a model gets for an image of `image_tokens` tokens, or states, in each row of `ids` (n, t).

        Its tokens are written into `ids`. Integers are real tensors, all else is on the meta device. ValueError where
        the architecture is unknown.
        """
        raise ValueError(f"no batch can be made for a {config.model_type!r} without its weights")


def _image_token(processor):
    """In a text for the processor: some have another token there than the one that they write for it."""
    return getattr(processor, "image_placeholder_token", None) or processor.image_token


class SizedImage(Image.Image):
    """An image of known size (width, height) without pixels, which a processor takes for an image."""

    def __init__(self, size: tuple[int, int]):
        super().__init__()
        self._mode, self._size = "RGB", size

    def copy(self):
        return self


class ImageProcessorStandIn:
    """Stands in for an image processor, of which it has all that a subclass does not do itself."""

    def __init__(self, image_processor):
        self.image_processor = image_processor

    def __getattr__(self, name):
        return getattr(self.image_processor, name)
