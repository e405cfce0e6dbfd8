"""Rows of the schema become a batch: token ids, image tensors, and labels where the model should learn.

Training and inference go through the same steps, so a prompt is the very beginning of what was trained on: the chat
template writes the text, and one call of the processor makes all tensors.
"""

import copy
from collections.abc import Sequence

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import BatchFeature, ProcessorMixin

from vlmhelpers.batches.chat_template import IGNORED, ChatTemplate, ListeningTokenizer, Refused
from vlmhelpers.batches.conversation import naming, to_answer, to_train
from vlmhelpers.batches.pixel_cache import for_images
from vlmhelpers.families import family_of
from vlmhelpers.models.loading import check_processor

_OTHER_ROW = "leave the row out, or give it images of other sizes, or as many as the model was made for"
TRAIN_ON = ("assistant", "last", "all")
LOGITS = ("all", "labeled")


class VisionCollator:
    """Makes batches of rows: the `data_collator` of TRL's trainers, and what `generate` answers.

    processor: the model's. max_length: a longer sequence raises ValueError; nothing is cut, as that would lose images
    or answers. train_on: "assistant" (every assistant turn with its end token), "last" (the last one only) or "all"
    (all but padding, image tokens and the token that begins a sequence). logits: "all", or "labeled" for logits only
    where a label stands, which saves most of the largest matrix and goes with `SFTConfig(loss_type="nll")`.

    An answer is learned after the very prompt that the model gets for it, whole and once. Where a chat template shows
    earlier answers otherwise, as for thinking models, the row raises ValueError unless `train_on="last"` (see
    `one_answer_per_row`). The model's control tokens in a row's text are escaped; tokens that you add yourself are
    learned, but for special ones in the form `<|name|>`. Images are repaired, blank lines before an answer dropped.
    Columns besides `messages`, `images` and a reader's are ignored; `remove_unused_columns=False` keeps the number of a
    row for errors.
    """

    def __init__(
        self, processor: ProcessorMixin, max_length: int | None = None, train_on: str = "assistant", logits: str = "all"
    ):
        for name, value, choices in (("train_on", train_on, TRAIN_ON), ("logits", logits, LOGITS)):
            if value not in choices:
                raise ValueError(f"{name}={value!r}: choose one of {', '.join(choices)}")
        check_processor(processor)
        self.processor = processor
        self.family = family_of(processor)
        self.max_length = max_length
        self.train_on = train_on
        self.logits = logits
        self.template = ChatTemplate(processor)

    def __call__(self, rows: Sequence[dict]) -> BatchFeature:
        """The training batch of n rows, padded on the right to t tokens.

        `input_ids`, `attention_mask` and `labels` are (n, t) int64; labels are -100 where nothing is learned. Images
        are as the family takes them. Qwen: `pixel_values` (patches, numbers per patch), `image_grid_thw` (images, 3) in
        patches. Phi-3: `pixel_values` (images, 1 + num_crops, 3, height, width), `image_sizes` (images, 2) in pixels.
        Mllama: `pixel_values` (n, images, tiles, 3, height, width), `aspect_ratio_ids` (n, images), `aspect_ratio_mask`
        (n, images, tiles), `cross_attention_mask` (n, t, images, tiles). With logits="labeled": `logits_to_keep` (k,),
        the indices at which some row predicts a label, and `shift_labels` (n, k), the labels predicted there.

        Raises ValueError, with the row's name and a remedy, for a row that cannot be trained on.
        """
        conversations = [to_train(row, index, self.template.control) for index, row in enumerate(rows)]
        written = []
        for conversation in conversations:
            with naming(conversation.name):
                written.append(self.template.to_train(conversation.messages, self.train_on))
        batch, read = self._tensors(conversations, [text for text, _ in written], padding_side="right")
        labels = []
        for conversation, (text, spans), one in zip(conversations, written, read, strict=True):
            with naming(conversation.name):
                labels.append(self.template.labels(text, spans, one))
        batch["labels"] = pad_sequence(labels, batch_first=True, padding_value=IGNORED)
        if self.max_length is not None:
            self._check_lengths(conversations, batch)
        if self.logits == "labeled":  # `labels` stay: trainers count them
            following = torch.nn.functional.pad(batch["labels"][:, 1:], (0, 1), value=IGNORED)
            batch["logits_to_keep"] = (following != IGNORED).any(dim=0).nonzero().flatten()
            batch["shift_labels"] = following[:, batch["logits_to_keep"]]
        return batch

    def prompts(self, rows: Sequence[dict]) -> BatchFeature:
        """The batch to answer n rows, without labels and their last assistant turn, if any; padded on the left."""
        conversations = [to_answer(row, index, self.template.control) for index, row in enumerate(rows)]
        texts = []
        for conversation in conversations:
            with naming(conversation.name):
                texts.append(self.template.text(conversation.messages, prompt=True))
        batch, read = self._tensors(conversations, texts, padding_side="left")
        for conversation, text, one in zip(conversations, texts, read, strict=True):
            with naming(conversation.name):
                self.template.labels(text, [], one)  # none: it tells what stands for the images
        if self.max_length is not None:
            self._check_lengths(conversations, batch)
        return batch

    def is_image(self, ids: torch.Tensor) -> torch.Tensor:
        """Which of the `ids` of batches made so far stand for images (bool, of the same shape)."""
        return torch.isin(ids, torch.tensor(sorted(self.template.image_ids), dtype=ids.dtype))

    def _tensors(self, conversations, texts, padding_side):
        """(the batch, what the tokenizer read of each row): one call of the processor.

        The texts begin with the token that they need.
        """
        if not self.family.mixable:
            _check_one_kind(conversations)
        images = [conversation.images for conversation in conversations]
        processor = copy.copy(for_images(self.processor, [image for row in images for image in row]))
        processor.tokenizer = ListeningTokenizer(self.processor.tokenizer)
        options = {"padding": True, "padding_side": padding_side, "add_special_tokens": False, "return_tensors": "pt"}
        kinds = [name for name in ("mm_token_type_ids",) if name in getattr(processor, "model_input_names", ())]
        options |= {f"return_{name}": True for name in kinds}
        try:
            batch = processor(text=texts, images=images if any(images) else None, **options)
        except (OSError, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # a processor is a program of others: some take no row without an image, say
            names = ", ".join(conversation.name for conversation in conversations)
            with naming(names):
                raise Refused(f"{type(self.processor).__name__} does not take this: {error}", _OTHER_ROW) from error
        read = processor.tokenizer.read
        if len(read) != len(texts):
            what = f"lets its tokenizer read {len(read)} texts of {len(texts)} rows: it cuts them apart"
            raise ValueError(f"{type(self.processor).__name__} {what}")
        return self.family.complete_batch(batch, [len(row) for row in images]), read

    def _check_lengths(self, conversations, batch):
        lengths = batch["attention_mask"].sum(dim=1).tolist()
        image_tokens = self.is_image(batch["input_ids"]).sum(dim=1).tolist()
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
        if not images:
            return "shorten its text or raise max_length"
        if not self.family.has_pixel_cap:
            return "shorten its text, show fewer or smaller images or raise max_length; this family has no pixel cap"
        cap = self.family.largest_cap(self.processor, images, room)
        if cap is None and room <= 0:
            return "its text leaves no room for its images, so shorten it or raise max_length"
        if cap is None:
            few = f"the {room} tokens that its text leaves are too few for its images at any size"
            return f"{few}, so {'show fewer of them' if len(images) > 1 else 'shorten the text'} or raise max_length"
        return f"load_model(..., max_pixels={cap}) makes it fit"


def _check_one_kind(conversations):
    without = [conversation.name for conversation in conversations if not conversation.images]
    if without and len(without) < len(conversations):
        raise ValueError(
            f"{', '.join(without)}: no image, but other rows of the batch have one, and this family cannot take both "
            "at once, or was not tried. Keep rows with and without images in batches of their own: two datasets, or a "
            "batch size of 1"
        )
