"""Text and images for Phi-3-Vision: each `<|image_k|>` becomes as many image tokens as its image needs."""

import re
from pathlib import Path

from transformers import BatchFeature, PreTrainedTokenizerFast, ProcessorMixin
from transformers.image_utils import make_flat_list_of_images

IMAGE_TOKEN = "<|image|>"
_PLACEHOLDER = re.compile(r"<\|image_(\d+)\|>")
_PADDING = ("padding_side", "max_length", "pad_to_multiple_of")
# Turns as the model was trained on: the k-th image stands as <|image_k|> and a line break. Content may be a text.
CHAT_TEMPLATE = (Path(__file__).parent / "chat_template.jinja").read_text(encoding="utf-8")


class Phi3VProcessor(ProcessorMixin):
    """Tokenizer, image processor and chat template of Phi-3-Vision in one."""

    def __init__(self, image_processor, tokenizer, chat_template=None, **kwargs):
        self.image_token = IMAGE_TOKEN
        self.image_token_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
        super().__init__(image_processor, tokenizer, chat_template=chat_template or CHAT_TEMPLATE, **kwargs)

    @classmethod
    def _load_tokenizer_from_pretrained(cls, name, folder, subfolder="", num_crops=None, **kwargs):
        return PreTrainedTokenizerFast.from_pretrained(folder, subfolder=subfolder, **kwargs)

    @property
    def model_input_names(self):
        return [*self.tokenizer.model_input_names, *self.image_processor.model_input_names]

    def __call__(self, text=None, images=None, num_crops=None, add_special_tokens=True, return_tensors=None, **kwargs):
        """A BatchFeature of a text or n texts (`input_ids`, `attention_mask`) and their images (see `preprocess`).

        text: its `<|image_1|>`, `<|image_2|>`, ... stand for its own images. images: those of all texts in order, flat
        or a list per text: PIL, arrays, paths or URLs. add_special_tokens: begin each text with `<s>`; one follows
        every image anyway. kwargs: `truncation` and those of the tokenizer's `pad`.

        Raises ValueError where placeholders and images do not match, or where `max_length` would cut through an image;
        TypeError for arguments in groups, such as `images_kwargs`.
        """
        for group in ("common_kwargs", "text_kwargs", "images_kwargs"):  # in which a wish for other tiles would be lost
            if kwargs.get(group):
                raise TypeError(f"{group} is not read: pass {', '.join(kwargs[group])} without it")
        if text is None:
            features = self.image_processor(images, num_crops=num_crops, return_tensors=return_tensors)
            features.pop("num_img_tokens")
            return features
        texts = [text] if isinstance(text, str) else list(text)
        wanted = [[int(number) for number in _PLACEHOLDER.findall(text)] for text in texts]
        flat = make_flat_list_of_images(self.image_processor.fetch_images(images)) if _any(images) else []
        shown = _in_order(wanted, flat)
        _check_lists(wanted, images)
        pixels = self.image_processor(shown, num_crops=num_crops) if shown else {}
        counts = iter(pixels.pop("num_img_tokens", []))
        expanded = [self._expanded(text, counts, add_special_tokens) for text in texts]
        ids = self.tokenizer(expanded, add_special_tokens=False)["input_ids"]
        if kwargs.get("truncation") and kwargs.get("max_length") is not None:
            ids = [self._cut(row, kwargs["max_length"]) for row in ids]
        options = {"padding": kwargs.get("padding", False)} | {name: kwargs.get(name) for name in _PADDING}
        batch = self.tokenizer.pad({"input_ids": ids}, return_attention_mask=True, **options)
        return BatchFeature({**batch, **pixels}, tensor_type=return_tensors)

    def _expanded(self, text, counts, add_special_tokens):
        """The text with the tokens of its images; `counts` yields their numbers in turn."""
        bos = self.tokenizer.bos_token
        first, *rest = _PLACEHOLDER.split(text)[::2]
        begin = bos if add_special_tokens and not first.startswith(bos) else ""
        return begin + first + "".join(self.image_token * next(counts) + bos + piece for piece in rest)

    def _cut(self, ids, max_length):
        if self.image_token_id in ids[max_length:]:
            raise ValueError(
                f"max_length={max_length} would cut through the image tokens of a text of {len(ids)} tokens: raise it, "
                "or use fewer num_crops"
            )
        return ids[:max_length]


def _any(images):
    return images is not None and not (isinstance(images, list | tuple) and not any(_any(part) for part in images))


def _in_order(wanted, images):
    """The images of all texts in the order of their placeholders, whose numbers `wanted` has per text."""
    shown, start = [], 0
    for place, numbers in enumerate(wanted, start=1):
        count = len(set(numbers))
        if set(numbers) != set(range(1, count + 1)):
            raise ValueError(f"text {place} names the images {numbers}: count its placeholders from <|image_1|> on")
        shown += [images[start + number - 1] for number in numbers if start + number <= len(images)]
        start += count
    if start != len(images):
        raise ValueError(f"{len(images)} images for placeholders of {start}: write one <|image_k|> per image of a text")
    return shown


def _check_lists(wanted, images):
    """Of a list of images per text, each has to be as long as its text needs."""
    if not isinstance(images, list | tuple) or not all(isinstance(part, list | tuple) for part in images):
        return
    given, named = [len(part) for part in images if part], [len(set(numbers)) for numbers in wanted if numbers]
    if given != named:
        raise ValueError(f"lists of {given} images for texts that name {named}: give each text the images it names")
