"""Rows of the schema become a batch: token ids, image tensors, and labels where the model should learn.

Training and answering go through the same steps, so the prompt that a model answers is the very beginning of
what it was trained on: the processor's chat template writes the text, and one call of the processor makes
all tensors.
"""

import math
from bisect import bisect_right

import torch

from vlmhelpers.batches.chat_template import IGNORED, ChatTemplate
from vlmhelpers.batches.conversation import naming, to_answer, to_train
from vlmhelpers.batches.pixel_files import for_pictures
from vlmhelpers.families.phi3_vision import Phi3VImageProcessor

TRAIN_ON = ("assistant", "last", "all")
LOGITS = ("all", "labelled")


class VisionCollator:
    """Makes batches of rows for Qwen2.5-VL, Qwen3-VL, Phi-3-Vision and Llama 3.2 Vision (Mllama).

    `processor`: the model's processor. `max_length`: a longer sequence raises ValueError; nothing is ever
    cut, as that would lose images or answers. `train_on`: "assistant" (every assistant turn with its end
    token), "last" (the last assistant turn only) or "all" (all but padding, image tokens and the token that
    begins a sequence). `logits`: "all", or "labelled" for logits at the places only that a label stands for; the
    model then skips the others in its largest matrix. This goes with `SFTConfig(loss_type="nll")`.

    An answer is only learned after the very prompt that the model gets for it, whole and once. Chat templates
    for thinking models show the earlier answers of a conversation otherwise: such rows raise ValueError unless
    `train_on="last"` (see `one_answer_per_row`).

    Control tokens written out in a row's text are defused, images repaired, and blank lines at the start of
    an answer dropped. Columns besides `messages`, `images` and `row` are ignored. Usable as `data_collator`
    of TRL's SFTTrainer; set `remove_unused_columns=False` there, so that errors can tell the row's number.
    """

    def __init__(self, processor, max_length=None, train_on="assistant", logits="all"):
        for name, value, choices in (("train_on", train_on, TRAIN_ON), ("logits", logits, LOGITS)):
            if value not in choices:
                raise ValueError(f"{name}={value!r}: choose one of {', '.join(choices)}")
        self.processor = processor
        self.max_length = max_length
        self.train_on = train_on
        self.logits = logits
        self.template = ChatTemplate(processor)

    def __call__(self, rows):
        """The training batch of n rows, padded on the right to t tokens.

        A BatchFeature, which is a dict with `.to(device)`. `input_ids`, `attention_mask` and `labels` are
        (n, t) int64; labels are -100 where nothing is learned. Images are as the family takes them. Qwen:
        `pixel_values` (patches of all images, numbers per patch) and `image_grid_thw` (images, 3), counted
        in patches. Phi-3: `pixel_values` (images, 1 + num_crops, 3, height, width) and `image_sizes` (images,
        2) in pixels. Mllama: `pixel_values` (n, images, tiles, 3, height, width), `aspect_ratio_ids` (n,
        images), `aspect_ratio_mask` (n, images, tiles) and `cross_attention_mask` (n, t, images, tiles).
        With logits="labelled" there are `logits_to_keep` (k,), the places at which some row predicts a label, and
        `shift_labels` (n, k), the labels to be predicted there.

        Raises ValueError, with the row's name and a remedy, for a row that cannot be trained on.
        """
        conversations = [to_train(row, place, self.template.specials) for place, row in enumerate(rows)]
        written = [self._to_train(conversation) for conversation in conversations]
        batch = self._tensors(conversations, [text for text, _ in written], padding_side="right")
        batch["labels"] = torch.full_like(batch["input_ids"], IGNORED)
        for i, (conversation, (text, spans)) in enumerate(zip(conversations, written, strict=True)):
            ids = batch["input_ids"][i][batch["attention_mask"][i].bool()].tolist()
            with naming(conversation.name):
                batch["labels"][i, : len(ids)] = torch.tensor(self.template.labels(text, spans, ids))
        if self.logits == "labelled":
            _keep_labelled(batch)
        return batch

    def prompts(self, rows):
        """The batch to answer n rows: without their last assistant turn, up to where the next answer begins.

        Padded on the left, as generation needs it, and without labels; otherwise as in training. A row may
        end with its user turn.
        """
        conversations = [to_answer(row, place, self.template.specials) for place, row in enumerate(rows)]
        texts = [self._prompt(conversation) for conversation in conversations]
        return self._tensors(conversations, texts, padding_side="left")

    def _to_train(self, conversation):
        with naming(conversation.name):
            return self.template.to_train(conversation.messages, self.train_on)

    def _prompt(self, conversation):
        with naming(conversation.name):
            return self.template.text(conversation.messages, prompt=True)

    def _tensors(self, conversations, texts, padding_side):
        """One call of the processor for the whole batch; the texts begin with the token that they need."""
        counts = [len(conversation.images) for conversation in conversations]
        crosses = crosses_attention(self.processor)
        if crosses:
            _check_one_kind(conversations)
        images = [conversation.images for conversation in conversations if conversation.images]
        processor = for_pictures(self.processor, [image for row in images for image in row])
        batch = processor(
            text=texts,
            images=images or None,
            padding=True,
            padding_side=padding_side,
            add_special_tokens=False,
            return_tensors="pt",
        )
        if self.max_length is not None:
            self._check_lengths(conversations, batch)
        return _fill_image_slots(batch, counts) if crosses and any(counts) else batch

    def _check_lengths(self, conversations, batch):
        lengths = batch["attention_mask"].sum(dim=1).tolist()
        image_tokens = (batch["input_ids"] == self.processor.image_token_id).sum(dim=1).tolist()
        for conversation, length, of_images in zip(conversations, lengths, image_tokens, strict=True):
            if length > self.max_length:
                room = self.max_length - (length - of_images)
                raise ValueError(
                    f"{conversation.name}: {length} tokens, {of_images} of them image tokens, are more than "
                    f"max_length={self.max_length}: {_remedy(self.processor, conversation.images, room)}. "
                    "Nothing is cut off, as that would lose images or answers"
                )


def crosses_attention(processor):
    """Whether it is Llama 3.2 Vision's, whose images take no tokens: the text looks at them through cross-attention."""
    return "cross_attention_mask" in processor.model_input_names


def _keep_labelled(batch):
    """Adds what makes a model of transformers compute logits and loss at the labelled places only.

    `labels` stay: the trainer counts them. The loss takes `shift_labels`, which are shifted by one already.
    """
    following = torch.nn.functional.pad(batch["labels"][:, 1:], (0, 1), value=IGNORED)
    batch["logits_to_keep"] = (following != IGNORED).any(dim=0).nonzero().flatten()
    batch["shift_labels"] = following[:, batch["logits_to_keep"]]


def _remedy(processor, images, room):
    """How to bring a row's images down to `room` tokens: by a cap on their pixels, else by less text."""
    if not images:
        return "shorten its text or raise max_length"
    has_tiles = isinstance(processor.image_processor, Phi3VImageProcessor)
    if not has_tiles and "longest_edge" not in dict(processor.image_processor.size):
        return "shorten its text or raise max_length; an image of this family takes as many tokens at any size"
    cap = largest_cap(processor.image_processor, images, room)
    if cap is None:
        return "its text leaves no room for its images, so shorten it or raise max_length"
    return f"load_model(..., max_pixels={cap}) makes it fit"


def largest_cap(image_processor, images, room):
    """The largest `max_pixels` per image that brings `images` down to `room` tokens, by the family's own rule, or None.

    For image processors whose tokens depend on the size of an image: Qwen2.5-VL's, Qwen3-VL's, Phi-3-Vision's.
    """
    by_tiles = isinstance(image_processor, Phi3VImageProcessor)
    return (_largest_cap_in_tiles if by_tiles else largest_pixel_cap)(image_processor, images, room)


def largest_pixel_cap(image_processor, images, room):
    """The largest `max_pixels` per image that brings `images` down to `room` tokens together, or None.

    For the image processors of Qwen2.5-VL and Qwen3-VL: one token stands for (patch_size * merge_size) ** 2
    pixels after resizing. Found from the sizes alone, with the processor's own resizing rule. An image that
    has to shrink counts with all tokens that the cap allows, also where its shape uses fewer: so rows as
    long as this one fit with images of any other shape, too.
    """
    pixels = (image_processor.patch_size * image_processor.merge_size) ** 2
    shortest, longest = image_processor.size["shortest_edge"], image_processor.size["longest_edge"]

    def tokens(image, least, most):
        limits = {"min_pixels": least, "max_pixels": most}
        patches = image_processor.get_number_of_image_patches(image.height, image.width, limits)
        return patches // image_processor.merge_size**2

    now = [tokens(image, shortest, longest) for image in images]

    def needed(allowed):
        cap = allowed * pixels
        capped = [tokens(image, min(shortest, cap), cap) for image in images]
        return sum(max(few, min(allowed, many)) for few, many in zip(capped, now, strict=True))

    return bisect_right(range(1, longest // pixels + 1), room, key=needed) * pixels or None


def _largest_cap_in_tiles(image_processor, images, room):
    """The same for Phi-3-Vision, whose images grow by tiles: the pixels of the most tiles per image, or None."""
    tile = image_processor.size["height"] * image_processor.size["width"]
    for tiles in range(image_processor.num_crops, 0, -1):
        if sum(image_processor.count_tokens(*image.size, tiles) for image in images) <= room:
            return tiles * tile
    return None


def _check_one_kind(conversations):
    """Raises ValueError for a batch of rows with and without images, which Mllama cannot take.

    transformers (5.17, its issue 39379) masks the images out of a token's cross-attention scores, but then
    adds the average of all image features all the same: beside a picture, a text-only row gets other logits
    than alone.
    """
    without = [conversation.name for conversation in conversations if not conversation.images]
    if without and len(without) < len(conversations):
        raise ValueError(
            f"{', '.join(without)}: no image, but other rows of the batch have one, and a model with "
            "cross-attention (Llama 3.2 Vision) cannot take both at once. Keep rows with and without images "
            "in batches of their own: two datasets, or a batch size of 1"
        )


def _fill_image_slots(batch, counts):
    """Mllama's batch with the empty image slots of each row filled by its own images over again, and masked.

    `counts` are the images per row. The average named in `_check_one_kind` reaches every token before the
    first image; with slots that are a multiple of each count, it is the average over the row's own images,
    as when alone.
    """
    slots = math.lcm(*counts)
    order = torch.tensor([[slot % count for slot in range(slots)] for count in counts])
    for name in ("pixel_values", "aspect_ratio_ids", "aspect_ratio_mask"):
        batch[name] = batch[name][torch.arange(len(counts))[:, None], order]
    more = slots - batch["cross_attention_mask"].shape[2]
    batch["cross_attention_mask"] = torch.nn.functional.pad(batch["cross_attention_mask"], (0, 0, 0, more))
    return batch
