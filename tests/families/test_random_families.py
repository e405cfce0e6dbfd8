"""The tiny random models that the conformance suite tries: they load as published ones do, and see what they are shown.

Some of their chat templates have the faults of the published ones, which the families have to repair or refuse.
"""

import functools
import math
from typing import NamedTuple

import pytest
import torch
from random_families import BUILDERS, build
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedModel, ProcessorMixin

from vlmhelpers.data.schema import assistant, text_part, user
from vlmhelpers.samples.drawing import sample_products

MOST_PARAMETERS = 1_100_000
ONE_SIZE = {"gemma3", "deepseek_vl", "llava", "paligemma"}  # every image takes the same number of tokens
NEEDS_IMAGES = {"paligemma"}
ANSWERS_AS_STRINGS = {"glm4v", "glm4v_moe"}
SHAPES = [(150, 100), (64, 120), (150, 100)]  # of the images of a row, in pixels
SIZES = [(64, 64), (64, 300), (150, 100), (300, 300)]


def eight_tokens(side):
    """The size that leaves an image at most eight tokens of that many pixels a side."""
    return {"size": {"shortest_edge": 4 * side**2, "longest_edge": 8 * side**2}}


LOWER = {  # settings of the image processor that leave fewer tokens
    **dict.fromkeys(["qwen2_vl", "glm4v", "glm4v_moe"], eight_tokens(28)),
    **dict.fromkeys(["qwen3_vl_moe", "qwen3_5", "qwen3_5_moe", "qwen3_omni_moe_thinker"], eight_tokens(32)),
    **dict.fromkeys(["smolvlm", "idefics3", "mistral3", "pixtral"], {"size": {"longest_edge": 56}}),
    **dict.fromkeys(["internvl", "ovis2"], {"max_patches": 1}),
    "lfm2_vl": {"max_tiles": 2},
    "gemma4": {"max_soft_tokens": 70},
    "kimi_k25": {"max_patches": 64},
}


class Loaded(NamedTuple):
    name: str
    model: PreTrainedModel
    processor: ProcessorMixin


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    """Gives the model of that name and its processor, from their files."""
    folder = tmp_path_factory.mktemp("random families")

    @functools.cache
    def loaded(name):
        path = build(name, folder)
        assert build(name, folder) == path == folder / name
        model = AutoModelForImageTextToText.from_pretrained(path, trust_remote_code=False)
        return Loaded(name, model, AutoProcessor.from_pretrained(path, trust_remote_code=False))

    return loaded


@pytest.fixture(params=[pytest.param(name, marks=pytest.mark.slow) for name in BUILDERS])  # half a minute in all
def loaded(request, load):
    return load(request.param)


@pytest.fixture(scope="module")
def images():
    """Three images; the first and the last are of one size."""
    return [image.resize(size) for (_, image), size in zip(sample_products(3, "r", 96), SHAPES, strict=True)]


def talk(name, images):
    answer = {"role": "assistant", "content": "plain red"} if name in ANSWERS_AS_STRINGS else assistant("plain red")
    return [user("What color is the bag?", images=images), answer]


def batch(name, processor, rows):
    """What the processor makes of rows, each a list of images."""
    texts = [processor.apply_chat_template(talk(name, len(row)), tokenize=False) for row in rows]
    made = processor(text=texts, images=rows, padding=True, add_special_tokens=False, return_tensors="pt")
    return {key: value for key, value in made.items() if key != "labels"}


def rows_for(name, images):
    return [images[:2]] if name in NEEDS_IMAGES else [images[:2], []]


# The files


def test_the_loaded_processor_makes_the_batches_of_the_built_one(loaded, images):
    rows = rows_for(loaded.name, images)
    built = batch(loaded.name, BUILDERS[loaded.name]()[1], rows)
    read = batch(loaded.name, loaded.processor, rows)
    assert built.keys() == read.keys()
    assert all(torch.equal(torch.as_tensor(built[key]), torch.as_tensor(read[key])) for key in built)


def test_the_weights_are_the_same_every_time_and_the_random_state_stays(loaded, tmp_path):
    torch.manual_seed(7)
    before = torch.get_rng_state()
    folder = build(loaded.name, tmp_path)
    assert torch.equal(before, torch.get_rng_state())
    again = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=False).state_dict()
    first = loaded.model.state_dict()
    assert first.keys() == again.keys() and all(torch.equal(first[key], again[key]) for key in first)


def test_it_is_tiny_and_fits_blocks_of_64(loaded):
    assert sum(parameter.numel() for parameter in loaded.model.parameters()) < MOST_PARAMETERS
    linears = [module for module in loaded.model.get_decoder().modules() if isinstance(module, torch.nn.Linear)]
    assert linears and all(linear.weight.numel() % 64 == 0 for linear in linears)


def test_the_ends_of_generation_are_tokens(loaded):
    tokenizer, settings = loaded.processor.tokenizer, loaded.model.generation_config
    ends = tokenizer.convert_ids_to_tokens(settings.eos_token_id)
    special = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    assert ends and set(ends) <= special and settings.pad_token_id == tokenizer.pad_token_id
    assert loaded.name in ANSWERS_AS_STRINGS | {"llava"} or set(ends) & {*tokens_of_answer(loaded)}


def tokens_of_answer(loaded):
    """What stands after the last word of a conversation."""
    text = loaded.processor.apply_chat_template(talk(loaded.name, 0), tokenize=False)
    return loaded.processor.tokenizer.tokenize(text.rpartition("plain red")[2])


# Images


def test_the_loss_is_finite_with_images_and_without(loaded, images):
    inputs = batch(loaded.name, loaded.processor, rows_for(loaded.name, images))
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    assert math.isfinite(loaded.model(**inputs, labels=labels).loss.item())


@torch.no_grad()
def test_another_image_gives_other_logits(loaded, images):
    first, second = ([images[0], images[1]], [images[2], images[1]])
    logits = [loaded.model(**batch(loaded.name, loaded.processor, [row])).logits[0, -1] for row in (first, second)]
    assert (logits[0] - logits[1]).abs().max() > 0.02 * logits[0].std()


def test_larger_images_take_more_tokens_where_the_family_cuts_or_keeps_them(loaded, images):
    def tokens(size):
        return batch(loaded.name, loaded.processor, [[images[0].resize(size)]])["input_ids"].shape[1]

    counts = [tokens(size) for size in SIZES]
    assert (len({*counts}) == 1) == (loaded.name in ONE_SIZE), counts


@pytest.mark.slow
@pytest.mark.parametrize("name", LOWER)
@torch.no_grad()
def test_a_lower_cap_leaves_fewer_tokens_and_the_model_takes_them(name, load, images, tmp_path):
    model, processor, row = load(name).model, load(name).processor, [images[0].resize((300, 300))]
    processor.save_pretrained(tmp_path)
    lowered = AutoProcessor.from_pretrained(tmp_path, trust_remote_code=False)
    for setting, value in LOWER[name].items():
        setattr(lowered.image_processor, setting, value)
    inputs = batch(name, lowered, [row])
    assert inputs["input_ids"].shape[1] < batch(name, processor, [row])["input_ids"].shape[1]
    assert model(**inputs).logits.isfinite().all()


# Text


@pytest.mark.parametrize("name", BUILDERS)
def test_text_comes_back_from_its_tokens(name):
    tokenizer = BUILDERS[name]()[1].tokenizer
    text = "What color is  the bag, é or 🙂?\n\nplain <b>red</b>: $20"
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_the_kinds_of_tokenizers_differ_where_the_published_ones_do():
    def tokens(name, text):
        return BUILDERS[name]()[1].tokenizer.tokenize(text)

    assert tokens("qwen2_vl", "bag red") == ["bag", "Ġred"]
    assert tokens("gemma3", "bag red") == ["bag", "▁red"]
    assert tokens("llava_next", "bag red") == ["▁bag", "▁red"]
    assert tokens("llava_next", "</s>bag") == ["</s>", "▁bag"]  # a space that the text does not have


def render(name, *messages):
    processor = BUILDERS[name]()[1]
    return processor.apply_chat_template(list(messages), tokenize=False)


def test_faults_of_published_templates_are_kept():
    string, asked = {"role": "system", "content": "Be brief."}, user("Why?")
    system = {"role": "system", "content": [text_part("Be brief.")]}
    for name in ("smolvlm", "idefics3"):
        assert "Be brief." not in render(name, string, asked) and "Be brief." in render(name, system, asked)
    assert "Be brief." in render("llava_next", system, asked)
    with pytest.raises(Exception, match="has no attribute"):
        render("llava_next", string, asked)
    assert "Be brief." in render("pixtral", string, asked)
    assert "Be brief." not in render("pixtral", string, asked, assistant("So."))
    plain = {"role": "assistant", "content": "So."}
    assert render("glm4v", asked, plain).endswith("<|assistant|>\nSo.")
    assert render("glm4v", asked, assistant("So.")).endswith("<|assistant|>\n[{'type': 'text', 'text': 'So.'}]")
    assert render("llava", asked, assistant("So.")).endswith("ASSISTANT: So. ")
