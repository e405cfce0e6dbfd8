"""Rows of the schema become a batch: token ids, image tensors, and labels where the model should learn.

Training and inference go through the same steps, so the prompt that a model answers is the very beginning of
what it was trained on: the processor's chat template writes the text, and one call of the processor makes
all tensors.
"""

from collections.abc import Sequence

import torch
from transformers import BatchFeature, ProcessorMixin

from vlmhelpers.batches.chat_template import IGNORED, ChatTemplate
from vlmhelpers.batches.conversation import naming, to_answer, to_train
from vlmhelpers.batches.pixel_files import for_images
from vlmhelpers.families import family_of

TRAIN_ON = ("assistant", "last", "all")
LOGITS = ("all", "labeled")


class VisionCollator:
    """Makes batches of rows for every family of `vlmhelpers.families`.

    `processor`: the model's processor. `max_length`: a longer sequence raises ValueError; nothing is ever
    cut, as that would lose images or answers. `train_on`: "assistant" (every assistant turn with its end
    token), "last" (the last assistant turn only) or "all" (all but padding, image tokens and the token that
    begins a sequence). `logits`: "all", or "labeled" for logits only where a label stands; the
    model then skips the others in its largest matrix. This goes with `SFTConfig(loss_type="nll")`.

    An answer is only learned after the very prompt that the model gets for it, whole and once. Chat templates
    for thinking models show the earlier answers of a conversation otherwise: such rows raise ValueError unless
    `train_on="last"` (see `one_answer_per_row`).

    Control tokens written out in a row's text are escaped, images repaired, and blank lines at the start of
    an answer dropped. Columns besides `messages`, `images`, `row` and a reader's `problem` are ignored. Usable as
    `data_collator` of TRL's SFTTrainer; set `remove_unused_columns=False` there, so that errors can name the row.
    """

    def __init__(
        self,
        processor: ProcessorMixin,
        max_length: int | None = None,
        train_on: str = "assistant",
        logits: str = "all",
    ):
        for name, value, choices in (("train_on", train_on, TRAIN_ON), ("logits", logits, LOGITS)):
            if value not in choices:
                raise ValueError(f"{name}={value!r}: choose one of {', '.join(choices)}")
        self.processor = processor
        self.family = family_of(processor)
        self.max_length = max_length
        self.train_on = train_on
        self.logits = logits
        self.template = ChatTemplate(processor)

    def __call__(self, rows: Sequence[dict]) -> BatchFeature:
        """The training batch of n rows, padded on the right to t tokens.

        A BatchFeature, which is a dict with `.to(device)`. `input_ids`, `attention_mask` and `labels` are
        (n, t) int64; labels are -100 where nothing is learned. Images are as the family takes them. Qwen:
        `pixel_values` (patches of all images, numbers per patch) and `image_grid_thw` (images, 3), counted
        in patches. Phi-3: `pixel_values` (images, 1 + num_crops, 3, height, width) and `image_sizes` (images,
        2) in pixels. Mllama: `pixel_values` (n, images, tiles, 3, height, width), `aspect_ratio_ids` (n,
        images), `aspect_ratio_mask` (n, images, tiles) and `cross_attention_mask` (n, t, images, tiles).
        With logits="labeled" there are `logits_to_keep` (k,), the indices at which some row predicts a label, and
        `shift_labels` (n, k), the labels to be predicted there.

        Raises ValueError, with the row's name and a remedy, for a row that cannot be trained on.
        """
        conversations = [to_train(row, index, self.template.specials) for index, row in enumerate(rows)]
        written = [self._to_train(conversation) for conversation in conversations]
        batch = self._tensors(conversations, [text for text, _ in written], padding_side="right")
        batch["labels"] = torch.full_like(batch["input_ids"], IGNORED)
        for i, (conversation, (text, spans)) in enumerate(zip(conversations, written, strict=True)):
            ids = batch["input_ids"][i][batch["attention_mask"][i].bool()].tolist()
            with naming(conversation.name):
                batch["labels"][i, : len(ids)] = torch.tensor(self.template.labels(text, spans, ids))
        if self.logits == "labeled":
            _keep_labeled(batch)
        return batch

    def prompts(self, rows: Sequence[dict]) -> BatchFeature:
        """The batch to answer n rows: without their last assistant turn, up to where the next answer begins.

        Padded on the left, as generation needs it, and without labels; otherwise as in training. A row may
        end with its user turn.
        """
        conversations = [to_answer(row, index, self.template.specials) for index, row in enumerate(rows)]
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
        if not self.family.mixable:
            _check_one_kind(conversations)
        images = [conversation.images for conversation in conversations if conversation.images]
        batch = for_images(self.processor, [image for row in images for image in row])(
            text=texts,
            images=images or None,
            padding=True,
            padding_side=padding_side,
            add_special_tokens=False,
            return_tensors="pt",
        )
        if self.max_length is not None:
            self._check_lengths(conversations, batch)
        return self.family.complete_batch(batch, [len(conversation.images) for conversation in conversations])

    def _check_lengths(self, conversations, batch):
        lengths = batch["attention_mask"].sum(dim=1).tolist()
        image_tokens = (batch["input_ids"] == self.processor.image_token_id).sum(dim=1).tolist()
        for conversation, length, of_images in zip(conversations, lengths, image_tokens, strict=True):
            if length > self.max_length:
                room = self.max_length - (length - of_images)
                raise ValueError(
                    f"{conversation.name}: {length} tokens, {of_images} of them image tokens, are more than "
                    f"max_length={self.max_length}: {self._remedy(conversation.images, room)}. "
                    "Nothing is cut off, as that would lose images or answers"
                )

    def _remedy(self, images, room):
        """How to bring a row's images down to `room` tokens: by a cap on their pixels, else by less text."""
        image_processor = self.processor.image_processor
        if not images:
            return "shorten its text or raise max_length"
        if not self.family.has_pixel_cap(image_processor):
            return "shorten its text or raise max_length; an image of this family takes as many tokens at any size"
        cap = self.family.largest_cap(image_processor, images, room)
        if cap is None:
            return "its text leaves no room for its images, so shorten it or raise max_length"
        return f"load_model(..., max_pixels={cap}) makes it fit"


def _keep_labeled(batch):
    """Adds what makes a model of transformers compute logits and loss where a label stands, and nowhere else.

    `labels` stay: the trainer counts them. The loss takes `shift_labels`, which are shifted by one already.
    """
    following = torch.nn.functional.pad(batch["labels"][:, 1:], (0, 1), value=IGNORED)
    batch["logits_to_keep"] = (following != IGNORED).any(dim=0).nonzero().flatten()
    batch["shift_labels"] = following[:, batch["logits_to_keep"]]


def _check_one_kind(conversations):
    """Raises ValueError for a batch of rows with and without images."""
    without = [conversation.name for conversation in conversations if not conversation.images]
    if without and len(without) < len(conversations):
        raise ValueError(
            f"{', '.join(without)}: no image, but other rows of the batch have one, and a model with "
            "cross-attention cannot take both at once. Keep rows with and without images in batches of their own: two "
            "datasets, or a batch size of 1"
        )
