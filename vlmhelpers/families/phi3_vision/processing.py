"""Text and images for Phi-3-Vision: each `<|image_k|>` becomes as many image tokens as its picture needs."""

import re
from pathlib import Path

from transformers import BatchFeature, PreTrainedTokenizerFast, ProcessorMixin
from transformers.image_utils import make_flat_list_of_images

IMAGE_TOKEN = "<|image|>"
_PLACEHOLDER = re.compile(r"<\|image_(\d+)\|>")

# Turns as the model was trained on: the k-th image stands as <|image_k|> and a line break. Content may be a text.
CHAT_TEMPLATE = (Path(__file__).parent / "chat_template.jinja").read_text(encoding="utf-8")


class Phi3VProcessor(ProcessorMixin):
    """Tokenizer and image processor of Phi-3-Vision in one, with a chat template for messages with images."""

    def __init__(self, image_processor, tokenizer, chat_template=None, **kwargs):
        self.image_token = IMAGE_TOKEN
        self.image_token_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
        super().__init__(image_processor, tokenizer, chat_template=chat_template or CHAT_TEMPLATE, **kwargs)

    @classmethod
    def _load_tokenizer_from_pretrained(cls, name, folder, subfolder="", num_crops=None, **kwargs):
        """The tokenizer by the rules of its file; `num_crops` is the image processor's."""
        return PreTrainedTokenizerFast.from_pretrained(folder, subfolder=subfolder, **kwargs)

    @property
    def model_input_names(self):
        return [*self.tokenizer.model_input_names, *self.image_processor.model_input_names]

    def __call__(
        self,
        text=None,
        images=None,
        num_crops=None,
        padding=False,
        padding_side=None,
        truncation=False,
        max_length=None,
        pad_to_multiple_of=None,
        add_special_tokens=True,
        return_tensors=None,
        **kwargs,
    ):
        """A BatchFeature of n texts and their images.

        text: one text or a list. In each, `<|image_1|>`, `<|image_2|>`, ... stand for its own images, counted from 1.
        images: the images of all texts in order, flat or a list per text: PIL, arrays, paths or URLs.
        num_crops: see `Phi3VImageProcessor`.
        add_special_tokens: begin each text with `<s>`, unless it does already. One follows every image in any case.

        `input_ids`, `attention_mask`: n lists, or (n, tokens) with `return_tensors="pt"`. `pixel_values` and
        `image_sizes`: as `Phi3VImageProcessor.preprocess` gives them, in the order in which the texts name the images.

        Raises ValueError where placeholders and images do not match, and where `max_length` with `truncation` would
        cut through an image; TypeError for arguments in groups, such as `images_kwargs`.
        """
        _refuse_groups(kwargs)
        if text is None:
            return self._images(images, num_crops, return_tensors)
        texts = [text] if isinstance(text, str) else list(text)
        wanted = [[int(number) for number in _PLACEHOLDER.findall(text)] for text in texts]
        flat = make_flat_list_of_images(self.image_processor.fetch_images(images)) if _any(images) else []
        shown = _in_order(wanted, flat)
        _check_lists(wanted, images)
        pixels = self.image_processor(shown, num_crops=num_crops) if shown else {}
        counts = iter(pixels.pop("num_img_tokens", []))
        ids = [self._ids(text, counts, add_special_tokens) for text in texts]
        if truncation and max_length is not None:
            ids = [self._cut(row, max_length) for row in ids]
        batch = self.tokenizer.pad(
            {"input_ids": ids},
            padding=padding,
            padding_side=padding_side,
            max_length=max_length,
            pad_to_multiple_of=pad_to_multiple_of,
            return_attention_mask=True,
        )
        return BatchFeature({**batch, **pixels}, tensor_type=return_tensors)

    def _images(self, images, num_crops, return_tensors):
        features = self.image_processor(images, num_crops=num_crops, return_tensors=return_tensors)
        features.pop("num_img_tokens")
        return features

    def _ids(self, text, counts, add_special_tokens):
        """Token ids of one text; `counts` yields the tokens of its images in turn.

        The text between two images is tokenized by itself, so a `<s>` follows every image.
        """
        bos = self.tokenizer.bos_token_id
        first, *rest = (
            self.tokenizer(piece, add_special_tokens=False)["input_ids"] for piece in _PLACEHOLDER.split(text)[::2]
        )
        ids = [bos, *first] if add_special_tokens and first[:1] != [bos] else list(first)
        for piece in rest:
            ids += [self.image_token_id] * next(counts) + [bos, *piece]
        return ids

    def _cut(self, ids, max_length):
        if self.image_token_id in ids[max_length:]:
            raise ValueError(
                f"max_length={max_length} would cut through the image tokens of a text of {len(ids)} tokens: raise it, "
                "or use fewer num_crops"
            )
        return ids[:max_length]


def _refuse_groups(kwargs):
    """transformers also knows arguments in groups. Here they would be ignored, and so a wish for other tiles."""
    for group in ("common_kwargs", "text_kwargs", "images_kwargs"):
        if kwargs.get(group):
            raise TypeError(f"{group} is not read: pass {', '.join(kwargs[group])} without it")


def _any(images):
    return images is not None and not (isinstance(images, list | tuple) and not any(_any(part) for part in images))


def _in_order(wanted, images):
    """The images of all texts in the order of their placeholders; `wanted` has the placeholders' numbers per text."""
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
    """Raises ValueError where there is a list of images per text, and some image is in the list of another text."""
    if not isinstance(images, list | tuple) or not all(isinstance(part, list | tuple) for part in images):
        return
    given, named = [len(part) for part in images if part], [len(set(numbers)) for numbers in wanted if numbers]
    if given != named:
        raise ValueError(f"lists of {given} images for texts that name {named}: give each text the images it names")
