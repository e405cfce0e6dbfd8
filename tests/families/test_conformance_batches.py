"""What every family has to keep in a batch: its rows, labels and prompts, tokens per image, and pixels on disk."""

import copy
import inspect

import pytest
import torch
from datasets import Dataset
from transformers import AutoProcessor
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from vlmhelpers.batches import VisionCollator, precompute, tokenize_rows
from vlmhelpers.batches.chat_template import IGNORED
from vlmhelpers.data.schema import FEATURES, assistant, make_row, message_text, text_part, user
from vlmhelpers.estimation.planning import count_rows
from vlmhelpers.families import FAMILIES
from vlmhelpers.models import set_max_pixels

SIZES = ((20, 20), (64, 48), (48, 64), (31, 97), (300, 40), (40, 300), (128, 128), (200, 150), (90, 91), (150, 33))
TALK = {"messages": [user("Say a."), assistant("A."), user("And b?"), assistant("B.")], "images": []}
TEXTS = [make_row("Write 3 as a word.", "Three."), TALK, make_row("Hello", "Hi, what can I do for you?")]


def logits_of(model, batch):
    """(n, t, vocabulary); `use_cache` is what TRL's trainer passes."""
    with torch.no_grad():
        return model(**{name: batch[name] for name in batch if name != "labels"}, use_cache=False).logits


def token_losses(model, batch):
    """The loss of every learned token, row by row."""
    logits, labels = logits_of(model, batch)[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten()
    return torch.nn.functional.cross_entropy(logits, labels, reduction="none")[labels != IGNORED]


def assert_same(batch, expected):
    """Two batches have the same names, and the same bits under each."""
    assert batch.keys() == expected.keys()
    for name, tensor in expected.items():
        assert batch[name].dtype == tensor.dtype and torch.equal(batch[name], tensor), name


def dataset_of(rows):
    return Dataset.from_list(rows, features=FEATURES)


def image_tokens(processor, rows):
    return int((VisionCollator(processor)(rows)["input_ids"] == processor.image_token_id).sum())


@pytest.fixture
def roomy(base):
    """The processor with a range of sizes, where its family has any: the tiny bases themselves have a single one."""
    processor = copy.deepcopy(base.processor)
    if base.family.has_pixel_cap:
        set_max_pixels(processor, 128**2)
    return processor


# Rows


def test_another_image_changes_the_loss(base, images):
    one, other = (base.collator([make_row("What is this?", "A red bag.", [image])]) for image in images[::2])
    assert (token_losses(base.model, one) - token_losses(base.model, other)).abs().max() > 1e-2


def test_padding_and_other_rows_of_a_batch_change_nothing(base, batches_of):
    for rows in batches_of(base.family):
        prompts, batch = base.collator.prompts(rows), base.collator(rows)
        left, right, losses = logits_of(base.model, prompts), logits_of(base.model, batch), []
        for i, row in enumerate(rows):
            alone = base.collator([row])
            expected, length = logits_of(base.model, alone)[0], alone["input_ids"].shape[1]
            for name in ("input_ids", "labels"):
                assert torch.equal(batch[name][i, :length], alone[name][0])
            assert (batch["labels"][i, length:] == IGNORED).all()
            torch.testing.assert_close(right[i, :length], expected, atol=1e-4, rtol=1e-5)
            asked = int(prompts["attention_mask"][i].sum())
            assert torch.equal(prompts["input_ids"][i, -asked:], alone["input_ids"][0, :asked])
            torch.testing.assert_close(left[i, -asked:], expected[:asked], atol=1e-4, rtol=1e-5)
            losses.append(token_losses(base.model, alone))
        for logits in ("all", "labeled"):
            loss = base.model(**VisionCollator(base.processor, logits=logits)(rows)).loss
            assert loss.item() == pytest.approx(torch.cat(losses).mean().item(), abs=1e-4)


def test_rows_with_and_without_images_are_mixed_or_refused_by_name(base, rows):
    mixed = [rows[0] | {"row": 4}, rows[1] | {"row": 9}]
    for make in (base.collator, base.collator.prompts):
        if base.family.mixable:
            make(mixed)
        else:
            with pytest.raises(ValueError, match="^row 9: no image, .*batches of their own"):
                make(mixed)


def test_every_tensor_of_a_batch_is_an_argument_of_the_model(base, rows):
    arguments = inspect.signature(type(base.model).forward).parameters
    for row in rows:
        batch = base.collator([row])
        assert set(batch) <= set(arguments)
        assert all(isinstance(tensor, torch.Tensor) for tensor in batch.values())


# Text


def test_labels_are_the_answers_with_an_end_that_generation_knows(base, rows):
    ends = base.model.generation_config.eos_token_id
    for row in rows:
        labels = base.collator([row])["labels"][0]
        learned = labels[labels != IGNORED].tolist()
        assert learned[-1] in (ends if isinstance(ends, list) else [ends])
        end = base.processor.tokenizer.decode(learned[-1])
        answers = [message_text(message) for message in row["messages"] if message["role"] == "assistant"]
        assert base.processor.tokenizer.decode(learned) == "".join(answer + end for answer in answers)


@pytest.mark.parametrize("train_on", ["assistant", "all"])
def test_labels_are_no_image_tokens_and_have_rows_in_the_head(base, rows, train_on):
    for row in rows:
        labels = VisionCollator(base.processor, train_on=train_on)([row])["labels"]
        assert base.processor.image_token_id not in labels
        assert 0 <= labels.max() < base.model.get_output_embeddings().weight.shape[0]


def test_a_prompt_is_the_beginning_of_the_row_in_training(base, rows):
    collator = VisionCollator(base.processor, train_on="last")
    for row in rows:
        prompt, batch = collator.prompts([row]), collator([row])
        length = prompt["input_ids"].shape[1]
        assert torch.equal(batch["input_ids"][:, :length], prompt["input_ids"])
        assert (batch["labels"][0] != IGNORED).int().argmax() == length
        text = collator.template.text
        assert text(row["messages"]).startswith(text(row["messages"][:-1], prompt=True))


def test_control_tokens_in_a_text_stay_text(base, images):
    specials = sorted(base.collator.template.control_tokens)
    written = " ".join(["<|image_1|>", *specials])
    split = user("", images=1)
    split["content"] += [text_part(piece) for special in specials for piece in (special[:3], special[3:])]
    row = {"messages": [user(written), assistant("A."), split, assistant(written)], "images": images[:1]}
    plain = {"messages": [user("a"), assistant("b"), user("c", images=1), assistant("d")], "images": images[:1]}
    collator = VisionCollator(base.processor, train_on="last")
    for make in (collator, collator.prompts):
        ids, expected = (make([one])["input_ids"] for one in (row, plain))
        for special, token in zip(specials, base.processor.tokenizer.convert_tokens_to_ids(specials), strict=True):
            assert (ids == token).sum() == (expected == token).sum(), special
    labels = collator([row])["labels"][0]
    learned = base.processor.tokenizer.decode(labels[labels != IGNORED][:-1])
    assert learned.replace(" ", "") == written.replace(" ", "")


def test_the_text_of_a_system_turn_reaches_the_model(base, rows):
    system = {"role": "system", "content": [text_part("Answer briefly.")]}
    for row in rows:
        row = row | {"messages": [system, *row["messages"]]}
        if base.collator.template.problems(row):  # Llama's templates take none beside an image
            with pytest.raises(ValueError, match="Remedy: put the text of its system turn at the beginning"):
                base.collator.prompts([row])
            continue
        batch = base.collator.prompts([row])
        assert "Answer briefly." in base.processor.tokenizer.decode(batch["input_ids"][0])


# Packing


def packed(base, rows):
    """What TRL's trainer makes of tokenized rows that share one sequence."""
    joined = {name: [token for row in rows for token in row[name]] for name in ("input_ids", "labels")}
    joined["seq_lengths"] = [len(row["input_ids"]) for row in rows]
    return DataCollatorForLanguageModeling(base.processor.tokenizer.pad_token_id, padding_free=True)([joined])


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_rows_have_the_losses_that_they_have_alone_or_are_refused(base, attention):
    dataset = dataset_of(TEXTS)
    if not base.family.packable:
        with pytest.raises(ValueError, match=f"^{type(base.processor).__name__}: packed rows .*Train without packing"):
            tokenize_rows(dataset, base.collator)
        return
    model = copy.deepcopy(base.model)
    model.set_attn_implementation(attention)
    alone = torch.cat([token_losses(model, base.collator([row])) for row in TEXTS])
    together = token_losses(model, packed(base, tokenize_rows(dataset, base.collator)))
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=0)


# Tokens per image, pixels on disk, and the cap on pixels


def rows_of_sizes(images):
    """Eleven rows: with images of ten sizes, the tenth with two of them, and without."""
    rows = [make_row("What is this?", "A bag.", [images[i % 4].resize(size)]) for i, size in enumerate(SIZES)]
    rows[-1] = make_row("Compare.", "Both are bags.", [images[0].resize(SIZES[-1]), images[1]])
    return [*rows, make_row("Hello, who are you?", "A shop's assistant.")]


def test_tokens_are_counted_without_the_images_as_the_collator_makes_them(base, roomy, images):
    dataset = dataset_of(rows_of_sizes(images))
    settings, collator = roomy.image_processor.to_json_string(), VisionCollator(roomy)
    before = [collator([row]) for row in dataset]
    counts, unusable = count_rows(dataset, range(len(dataset)), roomy)
    assert not unusable and len({count.total for count in counts}) > (3 if base.family.images_in_sequence else 1)
    for count, batch in zip(counts, before, strict=True):
        assert count.total == batch["attention_mask"].sum() and count.labeled == (batch["labels"] != IGNORED).sum()
        image = (batch["input_ids"] == roomy.image_token_id).sum()
        assert count.image == (image if base.family.images_in_sequence else 0)
    assert roomy.image_processor.to_json_string() == settings
    for row, batch in zip(dataset, before, strict=True):
        assert_same(collator([row]), batch)


def test_batches_over_stored_pixels_are_the_same_bit_for_bit_or_refused(base, roomy, rows, batches_of, tmp_path):
    if not base.family.caches_pixels:
        able = ", ".join(name for name, family in FAMILIES.items() if family.caches_pixels)
        with pytest.raises(
            ValueError, match=f"{type(roomy).__name__}: its pixels cannot be stored, only those of {able}"
        ):
            precompute(dataset_of(rows), roomy, tmp_path, progress=False)
        return
    stored = precompute(dataset_of(rows), roomy, tmp_path, progress=False)
    collator, of_row = VisionCollator(roomy), {id(row): i for i, row in enumerate(rows)}
    for batch in batches_of(base.family):
        ours = [stored[of_row[id(row)]] for row in batch]
        assert_same(collator(ours), collator(batch))
        assert_same(collator.prompts(ours), collator.prompts(batch))


def test_a_pixel_cap_lowers_the_tokens_and_is_saved_with_the_processor(base, roomy, images, tmp_path):
    row = make_row("What is this?", "A bag.", [images[2].resize((200, 150))])
    image_processor = roomy.image_processor
    if not base.family.has_pixel_cap:
        with pytest.raises(ValueError, match=f"{type(image_processor).__name__} has no pixel cap"):
            set_max_pixels(roomy, 1000)
        return
    before = image_tokens(roomy, [row])
    cap = base.family.largest_cap(roomy, row["images"], before // 2)
    set_max_pixels(roomy, cap)
    capped = image_tokens(roomy, [row])
    assert 0 < capped <= before // 2
    roomy.save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert image_tokens(loaded, [row]) == capped
    assert base.model(**VisionCollator(loaded)([row])).loss.isfinite()
