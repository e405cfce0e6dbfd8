"""Tokens as the collator counts them, a cap that makes the rows fit, and a report that says so."""

import copy
import functools
import io

import numpy as np
import pytest
from datasets import Dataset
from PIL import Image
from transformers import AutoProcessor, LlavaNextImageProcessor, LlavaNextProcessor, Qwen2VLImageProcessor

from vlmhelpers.batches.collator import VisionCollator
from vlmhelpers.common.images import repair
from vlmhelpers.data.schema import FEATURES, make_row
from vlmhelpers.estimation import planning
from vlmhelpers.estimation.memory import estimate_time
from vlmhelpers.estimation.planning import count_rows, preflight, propose_cap, with_cap
from vlmhelpers.families import TINY_BASES, family_of, tiny_model

LLAMA, PHI, QWENS = "llama-3.2-vision", "phi-3-vision", ("qwen2.5-vl", "qwen3-vl")


@pytest.fixture(scope="module", autouse=True)
def equal_rows_are_estimated_once():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planning, "estimate_memory", functools.cache(planning.estimate_memory))
        yield


@pytest.fixture(scope="module")
def processors():
    """family -> its tiny processor; Qwens keep images of 32x32 to 256x256 pixels; 6 tiles for Phi, 12 for InternVL."""
    made = {family: AutoProcessor.from_pretrained(tiny_model(family)) for family in TINY_BASES}
    for family in QWENS:
        made[family].image_processor.size = {"shortest_edge": 32**2, "longest_edge": 256**2}
    made[PHI].image_processor.num_crops = 6
    made["internvl"].image_processor.max_patches = 12
    return made


def noise(width, height, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8))


def turned():
    """A photo that lies on its side, as a phone stores it: 200 x 80 pixels when upright."""
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    noise(80, 200).save(buffer, "JPEG", exif=exif)
    return {"path": None, "bytes": buffer.getvalue()}


@pytest.fixture(scope="module")
def dataset(rows_of):
    """Large, small, two, no and turned images."""
    return rows_of(
        [
            ("What is this?", "A red bag.", [noise(240, 200)]),
            ("And this?", "A mug.", [noise(40, 48, 1)]),
            ("Which is older?", "The first.", [noise(200, 90, 2), noise(64, 64, 3)]),
            ("Hello, who are you?", "A shop's assistant, at your service.", []),
            ("What is it?", "A hat.", [turned()]),
        ]
    )


@pytest.fixture(params=TINY_BASES)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def reports(dataset, processors):
    """family -> its preflight with a limit that the larger images exceed."""
    return {
        family: preflight(dataset, processor, str(tiny_model(family)), max_length=90)
        for family, processor in processors.items()
    }


def test_rows_are_counted_as_the_collator_makes_them_of_the_images_themselves(family, dataset, processors):
    processor = processors[family]
    counts, unusable = count_rows(dataset, range(len(dataset)), processor)
    assert not unusable
    for row, count in zip(dataset, counts, strict=True):
        collator = VisionCollator(processor)
        batch = collator([row])
        assert count.total == batch["input_ids"].shape[1]
        assert count.labeled == (batch["labels"] != -100).sum() > 0
        if family != LLAMA:  # whose images leave a mark of one token, and no tokens of their own
            assert count.image == collator.is_image(batch["input_ids"]).sum()


@pytest.fixture
def generic_processor(processors):
    """Of LLaVA-NeXT, whose family knows no formula: its tokens are counted from the pixels of an image."""
    tokenizer = copy.deepcopy(processors["qwen3-vl"].tokenizer)
    tokenizer.image_token, tokenizer.image_token_id = "<|image_pad|>", processors["qwen3-vl"].image_token_id
    size = {"shortest_edge": 56}
    image_processor = LlavaNextImageProcessor(
        size=size, crop_size={"height": 56, "width": 56}, image_grid_pinpoints=[[56, 112], [112, 56], [112, 112]]
    )
    template = processors["qwen3-vl"].chat_template.replace("<|vision_start|>", "").replace("<|vision_end|>", "")
    return LlavaNextProcessor(image_processor, tokenizer, 14, "default", template, num_additional_image_tokens=1)


def test_rows_of_a_family_without_a_formula_are_counted_with_blank_images(dataset, generic_processor):
    assert family_of(generic_processor).size_reader(generic_processor.image_processor) is None
    counts, unusable = count_rows(dataset, range(len(dataset)), generic_processor)
    assert not unusable
    for row, count in zip(dataset, counts, strict=True):
        batch = VisionCollator(generic_processor)([row])
        assert count.total == batch["input_ids"].shape[1]
        assert count.image == (batch["input_ids"] == generic_processor.image_token_id).sum()
    assert counts[0].image != counts[4].image > 0  # so tokens do depend on the size


def test_blank_images_of_one_size_are_processed_once(rows_of, generic_processor, monkeypatch):
    calls = []
    process = LlavaNextImageProcessor.__call__
    monkeypatch.setattr(LlavaNextImageProcessor, "__call__", lambda *a, **k: calls.append(a) or process(*a, **k))
    rows = rows_of([("What is this?", "A bag.", [noise(64, 64 + 32 * (i % 2), i)]) for i in range(10)])
    counts, _ = count_rows(rows, range(10), generic_processor)
    assert len(counts) == 10 and len(calls) == 2


def test_a_twelve_megapixel_photo_takes_thousands_of_tokens_at_the_published_limits(processors):
    published = {"qwen2.5-vl": (14, 3136, 12845056, 15_301), "qwen3-vl": (16, 65536, 16777216, 11_750)}
    row = make_row("What is this?", "A bag.", [Image.new("RGB", (4000, 3000))])
    for family, (patch, shortest, longest, tokens) in published.items():
        processor = copy.copy(processors[family])
        size = {"shortest_edge": shortest, "longest_edge": longest}
        processor.image_processor = Qwen2VLImageProcessor(patch_size=patch, size=size)
        dataset = Dataset.from_list([row | {"images": []}])  # its image stays in memory, as pixels of no meaning
        ((count,), _) = count_rows(_Rows(dataset, [row]), range(1), processor)
        assert count.image == tokens


class _Rows:
    """A dataset of rows that lie in memory."""

    def __init__(self, like, rows):
        self.column_names, self.rows = like.column_names, rows

    def with_format(self, _):
        return self

    def __getitem__(self, index):
        return self.rows[index]

    def __len__(self):
        return len(self.rows)


@pytest.mark.slow
def test_the_proposed_cap_makes_every_row_fit_and_twice_as_many_pixels_do_not(family, reports, processors):
    report = reports[family]
    if family == LLAMA:
        assert report.cap is None and "take no tokens of the sequence" in repr(report)
        return
    assert report.too_long and max(count.total for count in report.after) <= 90
    collator = VisionCollator(with_cap(processors[family], report.cap), max_length=90)
    for row, count in zip(report.dataset, report.after, strict=True):
        assert collator([row])["input_ids"].shape[1] == count.total  # the images themselves, with the cap
    collator = VisionCollator(with_cap(processors[family], 2 * report.cap), max_length=90)
    with pytest.raises(ValueError, match="more than max_length=90"):
        [collator([row]) for row in report.dataset]


@pytest.mark.slow
def test_the_users_processor_is_left_as_it_is(processors, dataset, reports):
    assert processors["qwen2.5-vl"].image_processor.size == {"shortest_edge": 32**2, "longest_edge": 256**2}
    assert processors[PHI].image_processor.num_crops == 6


def test_rows_that_fit_need_no_cap(dataset, processors):
    counts, _ = count_rows(dataset, range(len(dataset)), processors["qwen3-vl"])
    assert propose_cap(processors["qwen3-vl"], counts, 2048) is None


@pytest.mark.slow
def test_a_row_too_long_in_its_text_is_named_and_does_not_press_the_others(rows_of, processors):
    rows = rows_of([("word " * 200, "no", [noise(64, 64)]), ("What?", "A bag.", [noise(240, 200)])])
    report = preflight(rows, processors["qwen3-vl"], str(tiny_model("qwen3-vl")), max_length=90)
    assert report.too_long == [1, 2]
    assert [count.total > 90 for count in report.after] == [True, False]
    assert "Longer at any resolution: row 1;" in repr(report)


def test_rows_that_cannot_be_used_are_named_and_the_rest_is_counted(processors, rows_of):
    good = make_row("What?", "A bag.", [noise(64, 64)])
    empty = make_row("What?", "", [noise(64, 64)])
    broken = make_row("What?", "A bag.", [{"path": None, "bytes": b"not an image"}])
    rows = Dataset.from_list([empty, good, broken], features=FEATURES).add_column("row", [7, 8, 9])
    report = preflight(rows, processors["qwen3-vl"], str(tiny_model("qwen3-vl")))
    assert [count.row for count in report.counts] == [8]
    assert [row for row, _ in report.unusable] == [7, 9]
    assert "2 cannot be used: row 7: ValueError: row 7: empty answer" in repr(report)
    with pytest.raises(ValueError, match="no row can be used.*check_dataset"):
        preflight(rows.select([0, 2]), processors["qwen3-vl"], str(tiny_model("qwen3-vl")))


@pytest.mark.slow
def test_of_many_rows_a_sample_is_counted_with_intervals(rows_of, processors):
    images = [noise(60 + 12 * (i % 12), 100, i) for i in range(40)]
    rows = rows_of([("What is this?", "A bag.", [image]) for image in images])
    model = str(tiny_model("qwen3-vl"))
    every, some, other = (
        preflight(rows, processors["qwen3-vl"], model, max_length=90, sample=size, seed=seed)
        for size, seed in ((40, 0), (15, 0), (15, 1))
    )
    assert len(some.counts) == 15 and some.is_sample and not every.is_sample
    assert [count.row for count in some.counts] != [count.row for count in other.counts]
    low, high = some.share_too_long.low, some.share_too_long.high
    assert low <= every.share_too_long.value <= high
    assert "[" in some.lengths.loc["all tokens", "mean"] and "[" not in every.lengths.loc["all tokens", "mean"]
    assert "15 of 40 counted" in repr(some) and "in the dataset" in repr(some)
    assert some.flops == pytest.approx(every.flops, rel=0.3)  # of the whole epoch, from the sample's mean row


def test_memory_and_time_are_those_of_the_rows_as_they_would_be_trained(family, reports):
    report = reports[family]
    longest, limit = report.memory["longest row"], report.memory["row of max_length"]
    tokens = max(count.total for count in report.after)
    assert f"1 row of {tokens} tokens" in longest.model or family == LLAMA
    assert "1 row of 90 tokens" in limit.model
    assert 0 < longest.total <= limit.total * 1.1
    least, most = estimate_time(report.flops)["A100 40 GB"]
    assert 0 < least < most
    assert list(report.gpus["row of max_length"]) == ["fits"] * 5


@pytest.mark.slow
def test_labels_make_logits_unless_all_are_wanted(dataset, processors):
    processor, model = processors["qwen3-vl"], str(tiny_model("qwen3-vl"))
    few, many = (
        preflight(dataset, processor, model, logits=which, gradient_checkpointing=False) for which in ("labeled", "all")
    )
    assert few.memory["longest row"].logits < many.memory["longest row"].logits


def test_the_report_shows_itself_as_text_and_in_a_notebook(family, reports):
    report = reports[family]
    markup = report._repr_html_()
    assert "<img src=" in markup and "epoch (not measured)" in markup and "0.5 GiB" in markup
    assert "Tokens per row" in repr(report) and "not measured" in repr(report)
    if report.cap is not None:
        assert f"max_pixels={report.cap}" in markup
        assert "all tokens, capped" in report.lengths.index


def test_the_cap_is_shown_on_an_image_with_its_pixels_and_tokens(family, reports):
    report = reports[family]
    if report.cap is None:
        with pytest.raises(ValueError, match="no cap is proposed"):
            report.show_cap()
        return
    now, capped, *_ = (axes.get_title() for axes in report.show_cap(row=1).axes)
    before, after = (next(c for c in counts if c.row == 1) for counts in (report.counts, report.after))
    assert f"{before.image} tokens" in now and f"{after.image} tokens" in capped
    turned_image = report.show_cap(row=5).axes[0].images[0].get_array()
    assert turned_image.shape[1] > turned_image.shape[0]  # upright
    with pytest.raises(ValueError, match="row 4 was not counted, or has no images"):
        report.show_cap(row=4)


def test_as_seen_is_the_size_that_the_patches_cover(processors):
    processor = processors["qwen3-vl"]
    image, tokens = family_of(processor).as_seen(processor, repair(noise(240, 200)))
    side = 2 * processors["qwen3-vl"].image_processor.patch_size
    assert tokens == image.width * image.height // side**2
    assert image.width % side == image.height % side == 0


def test_an_unknown_model_is_an_error_before_anything_is_counted(dataset, processors):
    with pytest.raises(ValueError, match="local folder"):
        preflight(dataset, processors["qwen3-vl"], "some/other-model")


@pytest.mark.slow
def test_a_real_model_is_estimated_where_only_its_name_is_there(dataset, processors):
    real = preflight(dataset, processors["qwen3-vl"], "Qwen/Qwen3-VL-2B-Instruct", max_length=90)
    assert real.memory["longest row"].weights > 1e9
    assert "no" not in set(real.gpus["longest row"])
