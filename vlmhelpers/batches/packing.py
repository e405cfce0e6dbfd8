"""Text-only rows as token ids and labels, which TRL packs: many short rows in one sequence without padding."""

import itertools

from datasets import Dataset, Features, List, Value

from vlmhelpers.batches.collator import VisionCollator
from vlmhelpers.data.rows import store_rows, stream_plain_rows
from vlmhelpers.data.schema import count_images
from vlmhelpers.families import FAMILIES

TOKEN_FEATURES = Features({"input_ids": List(Value("int32")), "labels": List(Value("int32"))})
_ROWS_PER_BATCH = 64


def tokenize_rows(dataset: Dataset, collator: VisionCollator) -> Dataset:
    """A Dataset of `input_ids` and `labels`, lists of int, one text-only row each, for `SFTConfig(packing=True)`.

    Give SFTTrainer the result with `processing_class=processor.tokenizer` and no collator. TRL cuts longer rows off at
    `SFTConfig(max_length=...)`: use the same for `collator`, which then refuses such a row by its name.

    Packed rows do not see each other: TRL gives each its own position ids, from which transformers (5.17) builds the
    mask where there is neither an attention mask nor a key-value cache. For `packable` families that holds with sdpa
    and eager attention, too, where TRL warns of contamination. Raises ValueError for another family, for a row with an
    image, as TRL packs text alone, and what the collator raises.
    """
    if not collator.family.packable:
        raise ValueError(
            f"{type(collator.processor).__name__}: packed rows of this family can see each other, or were not tried. "
            "Train without packing, on the rows themselves with the collator as data_collator; or take one of "
            f"{', '.join(family.name for family in FAMILIES.values() if family.packable)}"
        )
    tokenized = (_tokenized(collator, batch) for batch in _batches(dataset))
    return store_rows(itertools.chain.from_iterable(tokenized), TOKEN_FEATURES)


def _batches(dataset):
    """The rows in batches, as plain Python values, each with its number: that of its source, else its index."""
    rows = enumerate(stream_plain_rows(dataset, dataset.column_names, "tokenizing"), start=1)
    rows = ({**row, "row": row.get("row") or number} for number, row in rows)
    return iter(lambda: list(itertools.islice(rows, _ROWS_PER_BATCH)), [])


def _tokenized(collator, rows):
    for row in rows:
        if row.get("images") or count_images(row["messages"]):
            raise ValueError(
                f"row {row['row']}: it has an image, and TRL packs text alone. Leave such rows out, or train without "
                "packing, on the rows themselves with the collator as data_collator"
            )
    batch = collator(rows)
    real = batch["attention_mask"].bool()
    return [{name: batch[name][i][real[i]].tolist() for name in ("input_ids", "labels")} for i in range(len(rows))]
