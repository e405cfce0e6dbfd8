"""Text-only rows as token ids and labels, which TRL packs: many short rows in one sequence without padding."""

from datasets import Features, List, Value
from tqdm.auto import tqdm

from vlmhelpers.data.rows import batches_to_dataset, plain_rows

FEATURES = Features({"input_ids": List(Value("int32")), "labels": List(Value("int32"))})
_ROWS_PER_BATCH = 64
_STAYS_APART = {"Qwen3VLProcessor", "MllamaProcessor"}  # the tests prove it for the models of these


def tokenize_rows(dataset, collator):
    """A Dataset of `input_ids` and `labels`, one text-only row each, for `SFTConfig(packing=True)`.

    Both are lists of int of the row's own length, as `collator` (a VisionCollator) makes them, without its
    padding. For packing give SFTTrainer the result with `processing_class=processor.tokenizer` and no
    collator. TRL cuts longer rows off at `SFTConfig(max_length=...)`: use the same for the collator, which
    then refuses such a row by its name. The result lives in a temporary file, as long as the process.

    Packed rows do not see each other: TRL gives each its own position ids, from which transformers (5.17)
    builds the mask, as long as there is neither an attention mask nor a key-value cache; TRL's trainer has
    neither. For Qwen3-VL and Llama 3.2 Vision that holds with sdpa and eager attention, too, where TRL warns
    of contamination. Qwen2.5-VL drops the position ids before it builds the mask, and its rows do mix.

    Raises ValueError for a row with an image, as TRL packs text alone, for families whose rows mix when
    packed or that were not tried, and what the collator raises.
    """
    _check_family(collator.processor)
    return batches_to_dataset((_tokenized(collator, batch) for batch in _batches(dataset)), FEATURES)


def _check_family(processor):
    if not _STAYS_APART & {kind.__name__ for kind in type(processor).__mro__}:
        raise ValueError(
            f"{type(processor).__name__}: packed rows of this family can see each other (those of Qwen2.5-VL do) or "
            "were not tried. Train without packing, on the rows themselves with the collator as data_collator; or "
            "take Qwen3-VL or Llama 3.2 Vision"
        )


def _batches(dataset):
    """The rows in batches, as plain Python values, each with its number: that of its source, else its place."""
    with tqdm(total=len(dataset), desc="tokenising", unit=" rows", delay=1) as bar:
        for start in range(0, len(dataset), _ROWS_PER_BATCH):
            rows = plain_rows(dataset, range(start, min(start + _ROWS_PER_BATCH, len(dataset))))
            yield [row | {"row": row.get("row") or number} for number, row in enumerate(rows, start + 1)]
            bar.update(len(rows))


def _tokenized(collator, rows):
    for row in rows:
        if row.get("images") or any(part["type"] == "image" for turn in row["messages"] for part in turn["content"]):
            raise ValueError(
                f"row {row['row']}: it has an image, and TRL packs text alone. Leave such rows out, or train without "
                "packing, on the rows themselves with the collator as data_collator"
            )
    batch = collator(rows)
    real = batch["attention_mask"].bool()
    return [{name: batch[name][i][real[i]].tolist() for name in ("input_ids", "labels")} for i in range(len(rows))]
