"""Packed rows are learned as they are alone: the same labels, the same losses, no look at their neighbours."""

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForImageTextToText, AutoProcessor
from trl import SFTConfig, SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from vlmhelpers.batches.collator import VisionCollator
from vlmhelpers.batches.packing import tokenize_rows
from vlmhelpers.data.schema import FEATURES, assistant, make_row, user
from vlmhelpers.families import tiny_model
from vlmhelpers.models.lora import lora_targets

APART = ("qwen3-vl", "llama-3.2-vision")
TALK = {"messages": [user("Say a."), assistant("A."), user("And b?"), assistant("B.")], "images": []}
ROWS = [
    make_row("Write 3 as a word.", "Three."),
    make_row("What is the opposite of big?", "Small."),
    TALK,
    make_row("Hello", "Hi, what can I do for you?"),
]


def dataset_of(*rows):
    return Dataset.from_list(list(rows), features=FEATURES)


def processor_of(family):
    return AutoProcessor.from_pretrained(tiny_model(family))


def model_of(family, attention):
    return AutoModelForImageTextToText.from_pretrained(
        tiny_model(family), dtype=torch.float32, attn_implementation=attention
    ).eval()


def packed(rows, tokenizer):
    """What TRL's trainer makes of tokenized rows that share one sequence."""
    joined = {name: [token for row in rows for token in row[name]] for name in ("input_ids", "labels")}
    joined["seq_lengths"] = [len(row["input_ids"]) for row in rows]
    return DataCollatorForLanguageModeling(tokenizer.pad_token_id, padding_free=True)([joined])


def token_losses(model, batch):
    """The loss of every learned token, in order; `use_cache` is what TRL's trainer passes."""
    with torch.no_grad():
        logits = model(**{name: batch[name] for name in batch if name != "labels"}, use_cache=False).logits
    labels = batch["labels"][:, 1:].flatten()
    losses = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels, reduction="none")
    return losses[labels != -100]


def losses_packed_and_alone(family, attention):
    model, processor = model_of(family, attention), processor_of(family)
    collator = VisionCollator(processor)
    if family in APART:
        rows = list(tokenize_rows(dataset_of(*ROWS), collator))
    else:
        batches = [collator([row]) for row in ROWS]
        rows = [{name: batch[name][0].tolist() for name in ("input_ids", "labels")} for batch in batches]
    alone = torch.cat([token_losses(model, collator([row])) for row in ROWS])
    return token_losses(model, packed(rows, processor.tokenizer)), alone


@pytest.mark.parametrize("family", APART)
@pytest.mark.parametrize("train_on", ["assistant", "last", "all"])
def test_ids_and_labels_are_those_of_the_collator(family, train_on):
    collator = VisionCollator(processor_of(family), train_on=train_on)
    tokenized = tokenize_rows(dataset_of(*ROWS * 40), collator)  # more than a batch
    batches = [collator([row]) for row in ROWS]
    expected = [{name: batch[name][0].tolist() for name in ("input_ids", "labels")} for batch in batches]
    assert list(tokenized) == expected * 40


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", APART)
def test_packed_rows_have_the_losses_that_they_have_alone(family, attention):
    together, alone = losses_packed_and_alone(family, attention)
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=0)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_qwen25_is_refused_because_its_packed_rows_see_each_other(attention):
    """The day this fails, transformers has mended it, and Qwen2.5-VL can be packed like the others."""
    together, alone = losses_packed_and_alone("qwen2.5-vl", attention)
    assert (together - alone).abs().max() > 0.1
    with pytest.raises(ValueError, match="^Qwen2_5_VLProcessor: packed rows .*Train without packing.*qwen3-vl"):
        tokenize_rows(dataset_of(*ROWS), VisionCollator(processor_of("qwen2.5-vl")))


@pytest.mark.parametrize("family", APART)
def test_no_row_is_learned_from_the_end_of_the_one_before(family):
    processor = processor_of(family)
    rows = list(tokenize_rows(dataset_of(*ROWS), VisionCollator(processor, train_on="all")))
    batch = packed(rows, processor.tokenizer)
    firsts = batch["position_ids"][0] == 0
    assert firsts.sum() == len(rows) and (batch["labels"][0][firsts] == -100).all()


@pytest.mark.parametrize("number, name", [({"row": 71}, "row 71"), ({}, "row 66")])
def test_a_row_with_an_image_or_too_long_is_refused_by_its_number(number, name, picture):
    collator = VisionCollator(processor_of("qwen3-vl"), max_length=60)
    before = [make_row("Hello", "Hi.") | dict.fromkeys(number, 1)] * 65
    pictured = make_row("What?", "A bag.", [picture]) | number
    with pytest.raises(ValueError, match=f"^{name}: it has an image, and TRL packs text alone"):
        tokenize_rows(Dataset.from_list([*before, pictured]), collator)
    with pytest.raises(ValueError, match=f"^{name}: .* max_length=60"):
        tokenize_rows(Dataset.from_list([*before, make_row("Count.", "1 " * 60) | number]), collator)


def test_no_rows_give_no_rows():
    empty = tokenize_rows(dataset_of(ROWS[0]).select([]), VisionCollator(processor_of("qwen3-vl")))
    assert len(empty) == 0 and empty.column_names == ["input_ids", "labels"]


@pytest.mark.slow
def test_sft_trainer_packs_the_rows_and_loses_nothing(tmp_path):
    model, processor = model_of("qwen3-vl", "sdpa"), processor_of("qwen3-vl")
    collator = VisionCollator(processor, max_length=256)
    expected = model(**collator(ROWS)).loss.item()
    arguments = SFTConfig(
        tmp_path, packing=True, max_length=256, max_steps=3, learning_rate=1e-3, per_device_train_batch_size=1,
        use_cpu=True, bf16=False, report_to="none", save_strategy="no", logging_steps=1, disable_tqdm=True,
        gradient_checkpointing=False,
    )  # fmt: skip
    trainer = SFTTrainer(
        model,
        arguments,
        train_dataset=tokenize_rows(dataset_of(*ROWS), collator),
        processing_class=processor.tokenizer,
        peft_config=LoraConfig(r=4, target_modules=lora_targets(model)),
    )
    assert trainer.train_dataset["seq_lengths"] == [sorted(trainer.train_dataset["seq_lengths"][0], reverse=True)]
    assert sum(map(len, trainer.train_dataset["input_ids"])) == collator(ROWS)["attention_mask"].sum()
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[0] == pytest.approx(expected, abs=1e-3)  # an adapter starts as zero, so this is the base's loss
    assert losses[2] < losses[0]
