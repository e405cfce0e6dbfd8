"""check_dataset for a processor, for a family's name and for neither; datasets in every format."""

import pytest
import torch
from datasets import Dataset, List
from datasets import Image as ImageFeature
from PIL import Image
from tiny_families import build
from transformers import AutoProcessor

from vlmhelpers.batches import PreferenceCollator, RatedCollator, VisionCollator, check_dataset, show_mask
from vlmhelpers.batches.validation import _smaller, rules_of
from vlmhelpers.data.schema import (
    FEATURES,
    PAIR_FEATURES,
    RATED_FEATURES,
    assistant,
    make_pair,
    make_rated,
    make_row,
    text_part,
    user,
)
from vlmhelpers.estimation.planning import count_rows
from vlmhelpers.families import FAMILIES, tiny_model
from vlmhelpers.samples.drawing import sample_products

PICTURE = sample_products(1, "check", size=64)[0][1]
SYSTEM = {"role": "system", "content": [text_part("Be brief.")]}
SEEN = make_row("What is it?", "A bag.", [PICTURE])
TWICE = {"messages": [user("One?"), user("Two?"), assistant("Three.")], "images": []}
INSTRUCTED = SEEN | {"messages": [SYSTEM, user("Which?", 1), assistant("This.")]}
FORMATS = ["numpy", "torch", "decode=False", None]


@pytest.fixture(scope="module")
def llama():
    return AutoProcessor.from_pretrained(tiny_model("llama-3.2-vision"))


def dataset_of(*rows, features=FEATURES):
    return Dataset.from_list([*rows], features=features)


def check(dataset, model=None):
    return check_dataset(dataset, model, progress=False)


def test_a_processor_makes_it_strict(llama):
    rows = dataset_of(SEEN, INSTRUCTED, TWICE)
    assert check(rows).counts["kept"] == 3
    report = check(rows, llama)
    (found,) = report.rejected
    assert found["row"] == 2 and found["reason"].startswith("the chat template refuses the conversation: ")
    assert found["remedy"] == "put the text of its system turn at the beginning of its first user turn"
    assert report.families == []


def test_a_familys_name_makes_it_strict_by_what_that_declares():
    rows = dataset_of(SEEN, INSTRUCTED, TWICE)
    (found,) = check(rows, "gemma-3").rejected
    assert found["row"] == 3 and found["reason"].startswith("turns that gemma-3 does not take: user and assistant have")
    assert [found["row"] for found in check(rows, "llama-3.2-vision").rejected] == [2]
    assert not check(rows, "internvl").rejected


def test_an_unknown_family_is_an_error_that_names_those_there_are():
    with pytest.raises(ValueError, match=r"no family is called 'llama': pass a model's processor, or one of .*gemma-3"):
        check(dataset_of(SEEN), "llama")


@pytest.mark.parametrize("of", [lambda processor: processor.tokenizer, lambda processor: (None, processor), bool])
def test_what_is_no_processor_and_no_name_is_an_error(of, llama):
    with pytest.raises(TypeError, match="model is a .*, and no processor: pass the processor that vlm.load_model"):
        check(dataset_of(SEEN), of(llama))


@pytest.mark.parametrize("size", [(102_600, 513), (513, 102_600), (1023, 1023), (9000, 6000), (1027, 2049)])
def test_a_smaller_size_has_no_larger_ratio(size):
    smaller = _smaller(*size)
    assert min(smaller) < 512 and max(smaller) / min(smaller) <= max(size) / min(size)


def test_without_a_model_the_report_says_which_families_do_not_take_which_rows():
    report = check(dataset_of(SEEN, INSTRUCTED, TWICE, make_row("Which?", "Both.", [PICTURE, PICTURE])))
    turns, apart = report.families
    assert "1 for llama-3.2-vision (a system turn does not go with images)" in turns
    assert "1 for gemma-3 (user and assistant have to alternate, after one system turn or none)" in turns
    assert "1 for llava-next (LLaVA-NeXT was trained with one image in a conversation)" in turns
    assert apart == "Rows with images and rows without do not share a batch of llama-3.2-vision."
    assert turns in repr(report) and apart in report._repr_html_()
    assert check(dataset_of(SEEN)).families == []


def test_the_earlier_answers_of_pairs_are_not_learned_and_so_in_no_familys_way():
    asked = [user("One?"), assistant("1."), user("Two?")]
    pairs = dataset_of(make_pair("", "2.", "Z.") | {"prompt": asked}, features=PAIR_FEATURES)
    talk = dataset_of({"messages": [*asked, assistant("2.")], "images": []})
    assert not check(pairs, "qwen3.5").rejected and len(check(talk, "qwen3.5").rejected) == 1


@pytest.mark.parametrize("name", FAMILIES)
def test_the_sentence_of_a_family_stands_beside_its_pattern(name):
    pattern, sentence = FAMILIES[name].turns
    assert bool(pattern) == bool(sentence) and FAMILIES[name].takes_turns("ua")


@pytest.mark.parametrize("null", [{"prompt": None}, {"chosen": None}, {"chosen": [None]}, {"prompt": [None]}], ids=str)
def test_what_is_null_in_a_pair_is_a_row_to_leave_out(null, llama):
    pair = make_pair("What?", "A bag.", "A cat.", [PICTURE]) | null
    assert len(check(dataset_of(pair, features=PAIR_FEATURES), llama).rejected) == 1
    with pytest.raises(ValueError, match="^row 1 of the batch, chosen: .* Remedy: "):
        PreferenceCollator(llama)([pair])


def test_images_of_a_shape_that_a_processor_refuses():
    processor = build("qwen3-vl")[1]

    def refuse(images, **_):
        raise ZeroDivisionError("no side")

    rules = rules_of(processor)
    assert rules(SEEN, [(64, 64)]) == []
    processor.image_processor.get_number_of_image_patches = refuse
    ((reason, remedy),) = rules_of(processor)(SEEN, [(64, 64)])
    assert "Qwen3VLProcessor does not take this" in reason and "images of other sizes" in remedy


def test_large_images_are_not_asked_for_in_full_size(llama, monkeypatch):
    asked = []
    monkeypatch.setattr(
        type(FAMILIES["llama-3.2-vision"]), "blank_image", lambda _, size: asked.append(size) or PICTURE
    )
    rules = rules_of(llama)
    for size in ((9000, 6000), (300, 200), (9000, 60)):
        assert rules(SEEN, [size]) == []
    assert asked == [(562, 375), (300, 200), (9000, 60)]


@pytest.mark.parametrize("form", FORMATS)
def test_rows_of_every_format_make_the_same_batch(form, llama):
    plain = dataset_of(SEEN, make_row("Which?", "Both.", [PICTURE, PICTURE.resize((80, 60))]), make_row("Why?", "So."))
    rows = in_format(plain, form)
    assert check(rows, llama).counts["kept"] == 3
    collator = VisionCollator(llama)
    for given, expected in zip(rows, plain, strict=True):
        for make in (collator, collator.prompts):
            batch, other = make([given]), make([expected])
            assert batch.keys() == other.keys() and all(torch.equal(batch[name], other[name]) for name in other)
        assert show_mask(collator, given).text == show_mask(collator, expected).text


@pytest.mark.parametrize("form", [*FORMATS, "arrow"])
def test_rows_of_every_format_are_counted_the_same(form, llama):
    plain = dataset_of(SEEN, make_row("Why?", "So."))
    counts, unusable = count_rows(in_format(plain, form), range(2), llama)
    expected = count_rows(plain, range(2), llama)[0]
    assert not unusable and [count[:-1] for count in counts] == [count[:-1] for count in expected]


def in_format(rows, form):
    if form == "decode=False":
        return rows.cast_column("images", List(ImageFeature(decode=False)))
    return rows.with_format(form)


@pytest.mark.parametrize("form", FORMATS)
def test_so_do_pairs_and_rated_rows(form, llama):
    pairs = dataset_of(make_pair("What?", "A bag.", "A cat.", [PICTURE]), features=PAIR_FEATURES)
    rated = dataset_of(*[make_rated(f"Q{i}?", "A bag.", True, [PICTURE]) for i in range(2)], features=RATED_FEATURES)
    for rows, collator in ((pairs, PreferenceCollator(llama)), (rated, RatedCollator(llama))):
        batch, expected = collator([*in_format(rows, form)]), collator([*rows])
        assert all(torch.equal(batch[name], expected[name]) for name in expected)
        assert check(in_format(rows, form), llama).counts["kept"] == len(rows)


def test_arrays_that_do_not_tell_their_colors_are_refused_by_the_collator_alone(llama):
    rows = dataset_of(make_row("What?", "A bag.", [PICTURE.convert("P")]))
    report = check(rows.with_format("numpy"), llama)
    assert VisionCollator(llama)([report.dataset[0]])
    with pytest.raises(ValueError, match="no image: image 1 is ndarray"):
        VisionCollator(llama)([rows.with_format("numpy")[0]])


@pytest.mark.parametrize("form", ["arrow", "pandas"])
def test_a_row_that_is_a_table_is_refused_with_a_remedy(form, llama):
    rows = dataset_of(SEEN).with_format(form)
    assert check(rows, llama).counts["kept"] == 1
    for make in (VisionCollator(llama), VisionCollator(llama).prompts):
        with pytest.raises(ValueError, match=r"a row is a (Table|DataFrame): give the rows of dataset.with_format"):
            make([rows[0]])


def test_what_is_kept_has_no_format_and_all_columns(llama):
    rows = dataset_of(SEEN).with_format("torch", columns=["messages"])
    (kept,) = check(rows, llama).dataset
    assert isinstance(kept["images"][0], Image.Image)


def test_a_transform_is_refused():
    rows = dataset_of(SEEN)
    rows.set_transform(lambda batch: batch)
    with pytest.raises(ValueError, match="has a transform, which would be passed over: use dataset.with_format"):
        check(rows)
