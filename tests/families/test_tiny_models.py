"""The tiny bases: small, loadable by anyone, and able to see."""

import random

import pytest
from instructions import HELD_OUT, instruction, written
from texts import known_facts
from tiny_families import build
from transformers import AutoModelForImageTextToText, AutoProcessor

from vlmhelpers.data.turns import prompted
from vlmhelpers.evaluation.ablation import blank_images
from vlmhelpers.evaluation.scoring import evaluate
from vlmhelpers.families import TINY_BASES, tiny_model
from vlmhelpers.inference.generation import generate
from vlmhelpers.samples.drawing import QUESTIONS, sample_products

CLASSES = {
    "llama-3.2-vision": ("MllamaForConditionalGeneration", "MllamaProcessor", "MllamaImageProcessor"),
    "qwen2.5-vl": ("Qwen2_5_VLForConditionalGeneration", "Qwen2_5_VLProcessor", "Qwen2VLImageProcessor"),
    "qwen3-vl": ("Qwen3VLForConditionalGeneration", "Qwen3VLProcessor", "Qwen2VLImageProcessor"),
    "phi-3-vision": ("Phi3VForCausalLM", "Phi3VProcessor", "Phi3VImageProcessor"),
    "internvl": ("InternVLForConditionalGeneration", "InternVLProcessor", "GotOcr2ImageProcessor"),
}
ORDER = "Answer with one line of JSON: color, pattern, category and price."


@pytest.fixture(scope="module", params=TINY_BASES)
def tiny(request):
    folder = tiny_model(request.param)
    model = AutoModelForImageTextToText.from_pretrained(folder).float()
    return request.param, model, AutoProcessor.from_pretrained(folder)


def test_real_classes_and_small_files(tiny):
    family, model, processor = tiny
    names = [type(part).__name__ for part in (model, processor, processor.image_processor)]
    assert tuple(name.removesuffix("Fast") for name in names) == CLASSES[family]
    assert 1e6 <= sum(p.numel() for p in model.parameters()) <= 1.6e6
    assert sum(file.stat().st_size for file in tiny_model(family).iterdir()) < 3.5e6
    assert processor.chat_template == build(family)[1].chat_template


@pytest.mark.slow
def test_describes_200_new_pictures(tiny, rows_of):
    _, model, processor = tiny
    products, pictures = zip(*sample_products(200, "test", size=96), strict=True)
    question, caption = next(iter(QUESTIONS.items()))
    dataset = rows_of([(question, caption(p), [picture]) for p, picture in zip(products, pictures, strict=True)])
    assert evaluate(generate(model, processor, dataset, 50), dataset).scores["exact match"].value >= 0.95
    blank = blank_images(dataset)
    assert evaluate(generate(model, processor, blank, 50), blank).scores["exact match"].value <= 0.05


@pytest.mark.slow
@pytest.mark.parametrize("question", list(QUESTIONS)[1:])
def test_answers_questions_about_new_pictures(tiny, rows_of, question):
    _, model, processor = tiny
    samples = sample_products(100, "test questions", size=96)
    dataset = rows_of([(question, QUESTIONS[question](product), [picture]) for product, picture in samples])
    assert evaluate(generate(model, processor, dataset, 50), dataset).scores["exact match"].value >= 0.95


def test_answers_without_a_picture(tiny, rows_of):
    _, model, processor = tiny
    dataset = rows_of([(question, answer, []) for question, answer in known_facts()])
    assert evaluate(generate(model, processor, dataset, 32), dataset).scores["exact match"].value >= 0.95


@pytest.mark.slow
def test_qwen3_follows_an_instruction_that_it_was_never_given(rows_of):
    """Without it, it writes a caption; the price is written as in the examples, without those as a number."""
    folder, form = tiny_model("qwen3-vl"), "one line of JSON"
    model, processor = AutoModelForImageTextToText.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    products, pictures = zip(*sample_products(200, "test instructions", size=96), strict=True)
    examples = [written(product, form, HELD_OUT) for product in random.Random(0).sample(products, 3)]

    def right(expected, ask):
        pairs = zip(products, pictures, strict=True)
        rows = rows_of([("Describe this product as JSON.", expected(product), [picture]) for product, picture in pairs])
        return evaluate(generate(model.float(), processor, ask(rows), 50), rows).scores["exact match"].value

    assert right(QUESTIONS["Describe this product."], lambda rows: rows) >= 0.95
    assert right(lambda p: written(p, form, HELD_OUT, number=True), lambda rows: prompted(rows, ORDER)) >= 0.7
    assert 0.3 <= right(lambda p: written(p, form, HELD_OUT), lambda rows: prompted(rows, ORDER, examples)) <= 0.9


def test_prompts_of_pretraining_are_those_of_prompted(rows_of):
    rows = prompted(rows_of([("Describe this product.", "", [])]), ORDER, ["one", "two"])
    text = "".join(part["text"] for part in rows[0]["messages"][0]["content"])
    assert text == instruction("one line of JSON", HELD_OUT, ["one", "two"]) + "Describe this product."
