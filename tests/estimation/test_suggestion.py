"""The values of a run follow the model, the rows and the memory of the card; what somebody has chosen stays."""

import pytest
from datasets import Dataset
from PIL import Image
from transformers import AutoProcessor, Qwen2VLImageProcessor

from vlmhelpers.data.schema import FEATURES, make_row
from vlmhelpers.estimation import suggestion
from vlmhelpers.estimation.memory import GIB, GPUS, Memory, NotEstimated
from vlmhelpers.estimation.suggestion import Values, suggest
from vlmhelpers.families import TINY_BASES, tiny_model
from vlmhelpers.training.config import RunConfig
from vlmhelpers.training.methods.catalog import METHODS

REAL = "Qwen/Qwen2.5-VL-7B-Instruct"


def rows_of(number, size=(40, 30), answer="A red bag."):
    image = Image.new("RGB", size)
    rows = [make_row("What is it?", answer, [image]) for _ in range(number)]
    return Dataset.from_list(rows, features=FEATURES)


@pytest.fixture
def published():
    """A processor with the published limits on pixels and the tiny base's tokenizer."""
    processor = AutoProcessor.from_pretrained(tiny_model("qwen2.5-vl"), trust_remote_code=False)
    processor.image_processor = Qwen2VLImageProcessor(min_pixels=56 * 56, max_pixels=28 * 28 * 16384)
    return processor


@pytest.fixture
def memory(monkeypatch):
    """Lets a step take so many GiB for the weights in 4 and 16 bits, for each row, and for 1,000 tokens of it."""

    def take(weights, row=0.0, thousand_tokens=0.0):
        def estimate(model_id, tokens, image_tokens, batch_size, bits, **options):
            gib = weights[bits] + batch_size * (row + thousand_tokens * tokens / 1000)
            return Memory("", round(gib * GIB), 0, 0, 0, 0, 0, 0)

        monkeypatch.setattr(suggestion, "estimate_memory", estimate)
        monkeypatch.setattr(suggestion, "estimate_answering", lambda *args, **kw: estimate(*args, **kw).total)

    return take


@pytest.mark.parametrize("family", TINY_BASES)
def test_a_tiny_base_gets_its_familys_values(family):
    values = suggest(tiny_model(family))
    expected = {name: value for name, (value, _) in TINY_BASES[family].suitable_values(is_tiny=True).items()}
    assert values.is_tiny and expected.items() <= values.settings.items()
    assert values.learning_rate > 1e-3 and values.max_steps > 0


@pytest.mark.parametrize(
    "model_id", ["meta-llama/Llama-3.2-11B-Vision-Instruct", REAL, "microsoft/Phi-3.5-vision-instruct"]
)
def test_a_published_model_gets_the_usual_values(model_id):
    values = suggest(model_id)
    assert not values.is_tiny and 1e-5 <= values.learning_rate <= 2e-4
    assert (values.max_steps, values.epochs, values.bits, values.batch_size) == (-1, 3, None, None)
    assert all(values.reasons[name] for name, value in values.settings.items() if value is not None)


def test_a_value_of_ones_own_stays_and_the_others_follow_it():
    values = suggest(tiny_model("qwen3-vl"), epochs=2, lora_r=8, learning_rate=None)
    assert (values.epochs, values.max_steps, values.lora_r, values.lora_alpha) == (2, -1, 8, 8)
    assert values.changed == {"epochs", "lora_r"}
    assert values.learning_rate == suggest(tiny_model("qwen3-vl")).learning_rate


def test_other_methods_and_weights_of_the_model_itself_take_other_rates():
    rates = {method: suggest(REAL, method=method).learning_rate for method in METHODS}
    assert rates["dpo"] == 5e-6 < rates["grpo"] < rates["sft"] == 1e-4
    full = suggest(REAL, method="dpo", weights="full")
    assert full.learning_rate == pytest.approx(5e-7) and full.bits == 16 and "a tenth" in full.reasons["learning_rate"]
    assert suggest(REAL, weights="full", learning_rate=1e-3).learning_rate == 1e-3
    tiny = suggest(tiny_model("llama-3.2-vision"), method="dpo")
    assert (tiny.learning_rate, tiny.batch_size, tiny.max_steps) == (1e-3, 8, 60)


def test_an_unknown_value_is_an_error_that_names_the_known_ones():
    with pytest.raises(ValueError, match="'lora_rank' is no value of a run; there are .*lora_r"):
        suggest(tiny_model("qwen3-vl"), lora_rank=8)
    with pytest.raises(ValueError, match="gpu='K80': choose one of T4 16 GB"):
        suggest(REAL, gpu="K80")


def test_rows_of_text_get_some_about_images_beside_them():
    assert suggest(REAL, text_only=True).replay == 0.1 and suggest(REAL).replay == 0


def test_the_answers_decide_how_many_tokens_are_generated(tiny):
    _, processor = tiny("qwen3-vl")
    short, long = (suggest(tiny_model("qwen3-vl")).fit(rows_of(3, answer="bag " * n), processor) for n in (2, 60))
    assert short.max_new_tokens == 32 and 90 <= long.max_new_tokens <= 500
    assert suggest(tiny_model("qwen3-vl"), max_new_tokens=7).fit(rows_of(3), processor).max_new_tokens == 7


def test_a_row_of_a_tiny_run_is_never_longer_than_the_limit(tiny):
    _, processor = tiny("qwen3-vl")
    values = suggest(tiny_model("qwen3-vl")).fit(rows_of(2, answer="bag " * 2100), processor)
    assert values.max_length > 2100


@pytest.mark.slow
def test_16_bits_are_taken_where_they_leave_room_for_a_batch(published, memory):
    memory({4: 3, 16: 9}, row=1)
    roomy, small = (suggest(REAL, gpu=gpu).fit(rows_of(400), published) for gpu in ("L4", "T4"))
    assert (roomy.bits, roomy.batch_size, roomy.gradient_accumulation_steps) == (16, 8, 2)
    assert (small.bits, small.batch_size, small.gradient_accumulation_steps) == (4, 8, 2)
    assert small.answer_batch_size == 8
    chosen = suggest(REAL, gpu="T4", bits=16).fit(rows_of(400), published)
    assert (chosen.bits, chosen.batch_size, chosen.gradient_accumulation_steps) == (16, 2, 8)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("chosen", "batch", "accumulation"),
    [
        ({"batch_size": 2}, 2, 8),
        ({"batch_size": 3}, 3, 6),
        ({"gradient_accumulation_steps": 8}, 2, 8),
        ({"gradient_accumulation_steps": 1}, 8, 1),
        ({"batch_size": 2, "gradient_accumulation_steps": 2}, 2, 2),
    ],
)
def test_a_batch_or_an_accumulation_of_ones_own_decides_the_other(published, memory, chosen, batch, accumulation):
    memory({4: 3, 16: 90}, row=1)
    values = suggest(REAL, gpu="T4", **chosen).fit(rows_of(400), published)
    assert (values.batch_size, values.gradient_accumulation_steps) == (batch, accumulation)


def test_a_batch_of_ones_own_that_does_not_fit_stays_and_is_said(published, memory, capsys):
    memory({4: 3, 16: 90}, row=1)
    values = suggest(REAL, gpu="T4", batch_size=16).fit(rows_of(400), published)
    assert (values.bits, values.batch_size, values.gradient_accumulation_steps) == (4, 16, 1)
    assert "batch_size=16 is your choice, and may not fit: 16 of the longest row" in capsys.readouterr().out


def test_a_model_that_cannot_be_estimated_gets_the_least(published, memory, monkeypatch):
    def not_estimated(*_, **options):
        assert options["processor"] is published  # whose images are counted
        raise NotEstimated("the memory of a strange one cannot be estimated here: no values")

    monkeypatch.setattr(suggestion, "estimate_memory", not_estimated)
    values = suggest(REAL, gpu="T4").fit(rows_of(400), published)
    assert (values.bits, values.batch_size, values.gradient_accumulation_steps) == (4, 1, 16)
    assert "the least: the memory of a strange one cannot be" in values.reasons["batch_size"]


@pytest.mark.slow
def test_what_is_suggested_fits_with_a_reserve(published, memory):
    for row in (0.3, 0.9, 2.1, 5):
        memory({4: 3, 16: 9}, row=row)
        values = suggest(REAL, gpu="T4").fit(rows_of(400), published)
        weights = {4: 3, 16: 9}[values.bits]
        assert 1.1 * (weights + values.batch_size * row) < GPUS[0].gib
        assert values.batch_size * values.gradient_accumulation_steps == 16


@pytest.mark.slow
def test_long_rows_of_photos_get_a_cap_and_a_shorter_one_where_memory_is_short(published, memory):
    memory({4: 5, 16: 15}, row=0.1, thousand_tokens=2)
    values = suggest(REAL, gpu="T4").fit(rows_of(3, size=(2400, 1800)), published)
    assert 900_000 < values.max_pixels < 2048 * 28 * 28
    assert published.image_processor.size["longest_edge"] == values.max_pixels
    memory({4: 5, 16: 15}, row=0.1, thousand_tokens=6)
    published.image_processor.size = {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 16384}
    tight = suggest(REAL, gpu="T4").fit(rows_of(3, size=(2400, 1800)), published)
    assert (tight.max_length, tight.batch_size) == (1024, 1) and tight.max_pixels < values.max_pixels / 1.8
    assert "2,048 do not fit on T4" in tight.reasons["max_length"]


def test_answers_get_a_batch_and_a_limit_whatever_training_would_take(published, memory):
    memory({4: 6, 16: 100}, row=2)
    values = suggest(REAL, gpu="T4", bits=4).fit_answers(rows_of(3, answer="bag " * 40), published)
    longest = int(values.reasons["max_new_tokens"].split()[-2])
    assert values.max_new_tokens == 32 * -(-3 * longest // 64) and values.answer_batch_size == 2
    chosen = suggest(REAL, gpu="T4", bits=4, answer_batch_size=1, max_new_tokens=9).fit_answers(rows_of(3), published)
    assert (chosen.answer_batch_size, chosen.max_new_tokens) == (1, 9)
    assert suggest(REAL, bits=4).fit_answers(rows_of(3), published).answer_batch_size == 1  # on a CPU
    tiny = suggest(tiny_model("qwen2.5-vl"))
    assert tiny.fit_answers(rows_of(3), published).answer_batch_size == tiny.answer_batch_size
    unanswered = Dataset.from_list([{"messages": make_row("What?", "")["messages"][:1], "images": []}], FEATURES)
    with pytest.raises(ValueError, match="no row can be answered"):
        tiny.fit_answers(unanswered, published)


def test_a_model_that_fits_nowhere_is_an_error_with_the_size(published, memory):
    memory({4: 30, 16: 90})
    with pytest.raises(
        ValueError, match=r"7B-Instruct does not fit on T4 16 GB: .* 30\.0 GiB of 14\.7; for A100 40 GB"
    ):
        suggest(REAL, gpu="T4").fit(rows_of(30), published)


@pytest.mark.slow
@pytest.mark.parametrize(("rows", "per_step"), [(32, 4), (170, 8), (5000, 16), (3, 3)])
def test_few_rows_get_smaller_steps(published, memory, rows, per_step):
    memory({4: 3, 16: 9}, row=0.01)
    image = Image.new("RGB", (40, 30))
    few = Dataset.from_list([make_row("q", "a", [image])] * rows, features=FEATURES)
    values = suggest(REAL, gpu="T4").fit(few, published)
    assert values.batch_size * values.gradient_accumulation_steps in (per_step, per_step + 1)


def test_many_rows_are_read_once(published, memory, monkeypatch):
    memory({4: 3, 16: 9})
    monkeypatch.setattr(suggestion, "_MANY_ROWS", 10)
    assert suggest(REAL, gpu="T4").fit(rows_of(20), published).epochs == 1


def test_a_run_without_a_usable_row_is_an_error(tiny):
    _, processor = tiny("qwen3-vl")
    broken = Dataset.from_list([make_row("q", "", [])], features=FEATURES)
    with pytest.raises(ValueError, match="no row can be used.*check_dataset"):
        suggest(tiny_model("qwen3-vl")).fit(broken, processor)


def test_it_shows_every_value_with_its_reason():
    values = suggest(tiny_model("phi-3-vision"), learning_rate=1e-3)
    for shown in (repr(values), values._repr_html_()):
        assert "0.001" in shown and "your choice" in shown and "a tiny model on" in shown


def test_the_settings_of_a_run_are_filled_in_by_it(tmp_path):
    config = RunConfig(model_id="qwen3-vl", dataset="rows.jsonl", output_dir=str(tmp_path), learning_rate=1e-4)
    values = suggest(tiny_model("qwen3-vl"), **config.chosen)
    filled = config.filled(values)
    assert filled.learning_rate == 1e-4 and filled.lora_r == values.lora_r == 64
    assert set(config.chosen) < set(values.settings)
    assert all(value is not None for name, value in filled.chosen.items() if name != "max_pixels")


@pytest.mark.slow
def test_published_shapes_are_estimated_by_dry_runs(published):
    values = suggest(REAL, gpu="T4").fit(rows_of(3, size=(2400, 1800)), published, "labeled")
    assert isinstance(values, Values) and values.bits == 4 and values.batch_size >= 1
    assert 0.5e6 < values.max_pixels < 2048 * 28 * 28
