"""The native Phi-3-Vision: pictures of any shape, batches, long texts, generation, files, and what training needs."""

import copy
import math

import numpy as np
import pytest
import torch
from accelerate import infer_auto_device_map
from peft import LoraConfig, get_peft_model
from phi3_vision_parts import fill, publish, published_name, reference_image, reference_model
from PIL import Image
from safetensors import safe_open
from tiny_families import build
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    pipeline,
)

from vlmhelpers.batches.collator import VisionCollator
from vlmhelpers.data.schema import make_row
from vlmhelpers.families.phi3_vision import Phi3VForCausalLM, Phi3VImageProcessor, Phi3VProcessor
from vlmhelpers.models import loading as models
from vlmhelpers.models.loading import load_model
from vlmhelpers.models.lora import lora_targets
from vlmhelpers.samples.drawing import sample_products

PICTURES = [picture for _, picture in sample_products(4, "phi", size=96)]
SHAPES = {"square": (96, 96), "wide": (900, 120), "portrait": (70, 200), "tall": (10, 1500), "tiny": (3, 2)}


@pytest.fixture(scope="module")
def tiny():
    """(a small model with made-up weights, its processor)"""
    model, processor = build("phi-3-vision")
    processor.image_processor.num_crops = 4
    return fill(model), processor


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """(folder like a published repository, the model that was written there)"""
    folder = tmp_path_factory.mktemp("published")
    return folder, publish(folder)


def prompt(question, images=0):
    marks = "".join(f"<|image_{k + 1}|>\n" for k in range(images))
    return f"<|user|>\n{marks}{question}<|end|>\n<|assistant|>\n"


def with_limit(model, limit):
    """The same weights with short factors for so many tokens, that tests need not write 4,096."""
    config = copy.deepcopy(model.config)
    config.original_max_position_embeddings = config.rope_parameters["original_max_position_embeddings"] = limit
    config.rope_parameters["factor"] = 32.0
    other = Phi3VForCausalLM(config)
    other.load_state_dict(model.state_dict())
    return other.eval()


# Pictures


@pytest.mark.parametrize("num_crops", [1, 2, 4, 7, 16])
@pytest.mark.parametrize("shape", SHAPES)
def test_tiles_are_the_squares_of_the_arranged_picture(shape, num_crops):
    processor = Phi3VImageProcessor(num_crops=num_crops, size={"height": 48, "width": 48}, num_img_tokens=9)
    picture = PICTURES[0].resize(SHAPES[shape])
    batch = processor(picture, return_tensors="pt")
    height, width = batch["image_sizes"][0].tolist()
    rows, columns = height // 48, width // 48
    assert (rows, columns) == processor.tile_grid(*picture.size)
    assert rows * columns <= num_crops and (rows <= columns if picture.width >= picture.height else rows >= columns)
    assert batch["pixel_values"].shape == (1, 1 + num_crops, 3, 48, 48)
    arranged = processor.arrange(picture)
    assert arranged.size == (width, height)
    mean, std = (torch.tensor(values)[:, None, None] for values in (processor.image_mean, processor.image_std))
    for row in range(rows):
        for column in range(columns):
            square = arranged.crop((column * 48, row * 48, column * 48 + 48, row * 48 + 48))
            pixels = torch.from_numpy(np.array(square)).permute(2, 0, 1) / 255
            tile = batch["pixel_values"][0, 1 + row * columns + column]
            torch.testing.assert_close(tile, (pixels - mean) / std, atol=1e-5, rtol=0)
    assert not batch["pixel_values"][0, 1 + rows * columns :].any()
    tokens = (rows * columns + 1) * 9 + 1 + (rows + 1) * 3
    assert batch["num_img_tokens"].tolist() == [tokens] == [processor.count_tokens(*picture.size)]


def test_as_many_tiles_as_fit_and_no_more():
    processor = Phi3VImageProcessor()
    for width, height in [(640, 640), (1000, 500), (500, 1000), (3000, 100), (4000, 3000), (336, 337)]:
        ratio = max(width, height) / min(width, height)
        for num_crops in (1, 4, 16):
            long = max(processor.tile_grid(width, height, num_crops))
            assert long * math.ceil(long / ratio) <= num_crops < (long + 1) * math.ceil((long + 1) / ratio)


def test_a_portrait_picture_is_the_lying_one_turned():
    processor = Phi3VImageProcessor(num_crops=6, size={"height": 48, "width": 48}, num_img_tokens=9)
    lying = PICTURES[1].resize((200, 130))
    upright = lying.transpose(Image.Transpose.TRANSPOSE)
    assert (
        processor.arrange(upright).tobytes() == processor.arrange(lying).transpose(Image.Transpose.TRANSPOSE).tobytes()
    )


def test_white_bars_fill_what_the_picture_leaves():
    arranged = Phi3VImageProcessor(num_crops=4).arrange(Image.new("RGB", (300, 200), "black"))
    assert arranged.size == (672, 672)
    column = [arranged.getpixel((100, y))[0] for y in range(672)]
    assert column == [255] * 112 + [0] * 448 + [255] * 112


def test_image_tokens_stand_in_reading_order_with_breaks(tiny):
    """Against loops over tiles, lines and places, written from the published description."""
    embedding, processor = tiny[0].model.vision_embed_tokens, tiny[1]
    batch = processor(text=prompt("?", 2), images=[PICTURES[0].resize((50, 160)), PICTURES[1]], return_tensors="pt")
    expected = []
    for tiles, size in zip(batch["pixel_values"], batch["image_sizes"].tolist(), strict=True):
        rows, columns = (length // 48 for length in size)
        clip = embedding.img_processor(tiles, output_hidden_states=True).hidden_states[-2][:, 1:]
        patches = clip.view(len(tiles), 6, 6, -1)

        def line_tokens(parts, y, patches=patches):
            tokens = [
                torch.cat([patches[tile, 2 * y + i, 2 * x + j] for i in (0, 1) for j in (0, 1)])
                for tile in parts
                for x in range(3)
            ]
            return [*tokens, embedding.sub_GN.flatten()]

        for row in range(rows):
            for y in range(3):
                expected += line_tokens([1 + row * columns + column for column in range(columns)], y)
        expected.append(embedding.glb_GN.flatten())
        for y in range(3):
            expected += line_tokens([0], y)
    expected = embedding.img_projection(torch.stack(expected))
    found = embedding(batch["pixel_values"], batch["image_sizes"])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert len(found) == (batch["input_ids"] == processor.image_token_id).sum()


def test_bad_numbers_of_tiles_are_refused():
    for bad in (0, -1, 2.5, "4"):
        with pytest.raises(ValueError, match="num_crops="):
            Phi3VImageProcessor(num_crops=bad)(PICTURES[0])


# Texts with images


@pytest.mark.slow
def test_each_piece_is_a_text_of_its_own(published):
    processor = AutoProcessor.from_pretrained(published[0])
    batch = processor(text=prompt("What is shown in this image?", 1), images=reference_image(), return_tensors="pt")
    ids = batch["input_ids"][0].tolist()
    blank, newline = processor.tokenizer.convert_tokens_to_ids(["▁", "<0x0A>"])
    assert ids[: 4 + 757 + 3] == [1, 32010, blank, newline] + [32044] * 757 + [1, blank, newline]
    assert ids[-4:] == [32007, blank, newline, 32001]  # the last one swallows its line break
    assert ids.count(1) == 2


@pytest.mark.slow
def test_a_text_begins_once(published):
    processor = AutoProcessor.from_pretrained(published[0])
    text = prompt("What?")
    alone = processor(text=text)["input_ids"][0]
    assert alone[0] == 1 and alone.count(1) == 1
    assert processor(text="<s>" + text)["input_ids"][0] == alone
    assert processor(text="<s>" + text, add_special_tokens=False)["input_ids"][0] == alone
    assert processor(text=text, add_special_tokens=False)["input_ids"][0] == alone[1:]


@pytest.mark.slow
def test_the_chat_template_takes_the_schema_and_plain_texts(published):
    processor = AutoProcessor.from_pretrained(published[0])
    row = make_row("What is it?", "A bag.", PICTURES[:2])
    text = "<s><|user|>\n<|image_1|>\n<|image_2|>\nWhat is it?<|end|>\n<|assistant|>\nA bag.<|end|>\n"
    assert processor.apply_chat_template(row["messages"], tokenize=False) == text
    plain = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    assert processor.apply_chat_template(plain, tokenize=False, add_generation_prompt=True) == (
        "<s><|system|>\nBe brief.<|end|>\n<|user|>\nHello<|end|>\n<|assistant|>\n"
    )
    shown = [{"type": "image", "image": PICTURES[0]}, {"type": "text", "text": "What?"}]
    batch = processor.apply_chat_template(
        [[{"role": "user", "content": shown}], [{"role": "user", "content": "Hello"}]],
        add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
        processor_kwargs={"padding": True, "padding_side": "left"},
    )  # fmt: skip
    assert batch["pixel_values"].shape[0] == 1
    for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True):
        ids = ids[mask.bool()].tolist()
        assert ids[0] == 1 and ids.count(32044) in (0, 757) and ids[-1] == 32001


def test_images_follow_the_numbers_in_the_text(tiny):
    _, processor = tiny
    first, second = PICTURES[0], PICTURES[1].resize((200, 50))
    there = processor(text="<|image_2|> or <|image_1|>?", images=[first, second], return_tensors="pt")
    back = processor(text="<|image_1|> or <|image_2|>?", images=[second, first], return_tensors="pt")
    assert all(torch.equal(there[name], back[name]) for name in there)
    twice = processor(text="<|image_1|><|image_1|>", images=first, return_tensors="pt")
    assert torch.equal(twice["pixel_values"][0], twice["pixel_values"][1])


def test_flat_and_nested_images_are_the_same(tiny):
    _, processor = tiny
    texts = [prompt("a", 1), prompt("b"), prompt("c", 2)]
    flat = processor(text=texts, images=PICTURES[:3], padding=True, return_tensors="pt")
    for nested in ([[PICTURES[0]], [], PICTURES[1:3]], [[PICTURES[0]], PICTURES[1:3]]):
        other = processor(text=texts, images=nested, padding=True, return_tensors="pt")
        assert all(torch.equal(flat[name], other[name]) for name in flat)


@pytest.mark.parametrize(
    "text, images, message",
    [
        (prompt("a", 1), 0, "0 images for placeholders of 1"),
        (prompt("a", 1), 2, "2 images for placeholders of 1"),
        ("<|image_2|>", 1, "text 1 names the images .2.: count"),
        ([prompt("a"), "<|image_0|>"], 1, "text 2 names the images .0.: count"),
    ],
)
def test_placeholders_and_images_have_to_match(tiny, text, images, message):
    with pytest.raises(ValueError, match=message):
        tiny[1](text=text, images=PICTURES[:images] or None)


def test_a_list_of_images_per_text_has_to_fit_its_text(tiny):
    """Their number together is right: only the lists say that the second image is not the second text's."""
    with pytest.raises(ValueError, match=r"lists of \[2, 1\] images for texts that name \[1, 2\]"):
        tiny[1](text=[prompt("a", 1), prompt("b", 2)], images=[PICTURES[:2], PICTURES[2:3]])


def test_arguments_in_groups_are_refused_and_not_ignored(tiny):
    with pytest.raises(TypeError, match="images_kwargs is not read: pass num_crops without it"):
        tiny[1](text=prompt("a", 1), images=PICTURES[0], images_kwargs={"num_crops": 1})


def test_pictures_of_any_kind_and_from_files(tiny, tmp_path):
    _, processor = tiny
    PICTURES[0].save(tmp_path / "a.png")
    array = np.array(PICTURES[0])
    expected = processor(text="<|image_1|>", images=PICTURES[0], return_tensors="pt")["pixel_values"]
    for image in (str(tmp_path / "a.png"), array, torch.from_numpy(array).permute(2, 0, 1), [[PICTURES[0]]]):
        found = processor(text="<|image_1|>", images=image, return_tensors="pt")["pixel_values"]
        assert torch.equal(found, expected)


def test_the_pipeline_answers_about_a_file(tiny, tmp_path):
    model, processor = tiny
    PICTURES[0].save(tmp_path / "a.png")
    asked = [{"type": "image", "path": str(tmp_path / "a.png")}, {"type": "text", "text": "What is this?"}]
    answer = pipeline("image-text-to-text", model=model, processor=processor)
    (found,) = answer(text=[{"role": "user", "content": asked}], max_new_tokens=5, return_full_text=False)
    batch = processor(text=prompt("What is this?", 1), images=PICTURES[0], return_tensors="pt")
    ids = model.generate(**batch, max_new_tokens=5, do_sample=False)[0, batch["input_ids"].shape[1] :]
    assert found["generated_text"] == processor.decode(ids, skip_special_tokens=True)


def test_cutting_spares_images(tiny):
    _, processor = tiny
    whole = processor(text=prompt("word " * 30, 1), images=PICTURES[0])["input_ids"][0]
    cut = processor(text=prompt("word " * 30, 1), images=PICTURES[0], truncation=True, max_length=len(whole) - 9)
    assert cut["input_ids"][0] == whole[:-9]
    with pytest.raises(ValueError, match="max_length=20 would cut through the image tokens"):
        processor(text=prompt("word", 1), images=PICTURES[0], truncation=True, max_length=20)


def test_images_that_lost_their_tokens_are_an_error(tiny):
    model, processor = tiny
    batch = processor(text=prompt("What?", 1), images=PICTURES[0], return_tensors="pt")
    batch["input_ids"] = batch["input_ids"][:, 5:]
    with pytest.raises(ValueError, match="53 image tokens in input_ids for images of 55 tokens"):
        model(**batch)


def test_pixels_without_their_sizes_are_an_error(tiny):
    batch = tiny[1](text=prompt("What?", 1), images=PICTURES[0], return_tensors="pt")
    with pytest.raises(ValueError, match="pixel_values came without image_sizes"):
        tiny[0](**{name: value for name, value in batch.items() if name != "image_sizes"})


# Batches and long texts


def rows_in_a_batch():
    return [prompt("What is it?", 2), prompt("Say it in a few more words than one."), prompt("And this?", 1)]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("limit", [4096, 100])
def test_a_row_is_the_same_in_a_batch_and_alone(tiny, side, limit):
    """The limit lies between the lengths of the rows, so that some need long factors and some short ones."""
    model, processor = with_limit(tiny[0], limit), tiny[1]
    images = [[PICTURES[0], PICTURES[1].resize((300, 90))], [], [PICTURES[2].resize((40, 90))]]
    batch = processor(text=rows_in_a_batch(), images=images, padding=True, padding_side=side, return_tensors="pt")
    lengths = batch["attention_mask"].sum(1).tolist()
    assert limit == 4096 or min(lengths) < limit < max(lengths)
    with torch.no_grad():
        together = model(**batch).logits
        for i, (text, shown) in enumerate(zip(rows_in_a_batch(), images, strict=True)):
            alone = model(**processor(text=text, images=shown or None, return_tensors="pt")).logits[0]
            torch.testing.assert_close(together[i][batch["attention_mask"][i].bool()], alone, atol=1e-5, rtol=0)


def test_long_factors_begin_beyond_the_limit(tiny):
    """Angles by hand, from the published rule."""
    config = tiny[0].config
    rope, half = config.rope_parameters, config.hidden_size // config.num_attention_heads // 2
    scale = math.sqrt(1 + math.log(131072 / 4096) / math.log(4096))
    for length, name in ((4096, "short_factor"), (4097, "long_factor")):
        cos, sin = tiny[0].model.rotary_emb(torch.zeros(1), torch.arange(length)[None])
        frequencies = [1 / (factor * 10000 ** (2 * i / (2 * half))) for i, factor in enumerate(rope[name])]
        angles = torch.outer(torch.arange(length).double(), torch.tensor(frequencies).double()).repeat(1, 2)
        for found, wanted in ((cos[0], angles.cos()), (sin[0], angles.sin())):
            torch.testing.assert_close(found.double(), wanted * scale, atol=1e-3, rtol=0)


@pytest.mark.slow
def test_more_than_4096_tokens_of_text_and_image():
    model = reference_model("sdpa")
    processor = Phi3VImageProcessor(num_crops=16)
    pixels = processor(reference_image(), return_tensors="pt")
    count = pixels.pop("num_img_tokens").item()
    ids = torch.cat([torch.full((1, count), 32044), torch.arange(5, 5 + 4200 - count)[None]], dim=1)
    with torch.no_grad():
        long = model(input_ids=ids, **pixels, logits_to_keep=5).logits
        eager = reference_model("eager")(input_ids=ids, **pixels, logits_to_keep=5).logits
    torch.testing.assert_close(long, eager, atol=1e-5, rtol=0)


# Generation


OPTIONS = {"do_sample": False, "max_new_tokens": 30, "min_new_tokens": 30}


def step_logits(model, batch, **options):
    """The logits of each step of an answer: (steps, rows, vocabulary)."""
    found = model.generate(**batch, **OPTIONS, **options, return_dict_in_generate=True, output_logits=True)
    return torch.stack(found.logits)


@pytest.mark.parametrize("limit", [4096, 60, 110])
def test_answers_with_the_cache_are_those_without(tiny, limit):
    """Also where rows outgrow the short factors in the middle of their answers, at different steps."""
    model, processor = with_limit(tiny[0], limit), tiny[1]
    images = [[PICTURES[0]], [PICTURES[2].resize((40, 90))]]
    texts = [prompt("What is it?", 1), prompt("And what is this other thing?", 1)]
    batch = processor(text=texts, images=images, padding=True, padding_side="left", return_tensors="pt")
    cached = step_logits(model, batch)
    torch.testing.assert_close(cached, step_logits(model, batch, use_cache=False), atol=2e-5, rtol=0)
    for i, text in enumerate(texts):
        alone = processor(text=text, images=images[i], return_tensors="pt")
        torch.testing.assert_close(step_logits(model, alone)[:, 0], cached[:, i], atol=2e-5, rtol=0)


def test_a_conversation_goes_on_from_its_cache_beyond_the_limit(tiny):
    """The next question is many tokens at once, so no step stands at the limit itself."""
    model, processor = with_limit(tiny[0], 60), tiny[1]
    batch = processor(text=prompt("What?"), return_tensors="pt")
    first = model.generate(**batch, **OPTIONS, return_dict_in_generate=True)
    question = processor(text=prompt("And what is this other thing, in more words?" * 2), return_tensors="pt")
    ids = torch.cat([first.sequences, question["input_ids"]], dim=1)
    assert first.past_key_values.get_seq_length() < 60 < ids.shape[1]
    whole = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    expected = step_logits(model, whole)
    torch.testing.assert_close(
        step_logits(model, whole, past_key_values=first.past_key_values), expected, atol=2e-5, rtol=0
    )


def test_images_are_asked_for_again_where_their_cache_is_of_no_use(tiny):
    model, processor = with_limit(tiny[0], 60), tiny[1]
    picture = PICTURES[0].resize((40, 90))
    batch = processor(text=prompt("What?", 1), images=picture, return_tensors="pt")
    first = model.generate(**batch, max_new_tokens=2, return_dict_in_generate=True)
    longer = processor(text=prompt("What? " * 30, 1), images=picture, return_tensors="pt")
    whole = {name: longer[name] for name in ("input_ids", "attention_mask")}
    with pytest.raises(ValueError, match="pass pixel_values and image_sizes, and no past_key_values"):
        model.generate(**whole, max_new_tokens=2, past_key_values=first.past_key_values)


@pytest.mark.parametrize("limit", [4096, 30])
def test_embeddings_are_answered_like_their_tokens(tiny, limit):
    """Also where the answer outgrows the short factors, so that its embeddings are needed beside those given."""
    model, processor = with_limit(tiny[0], limit), tiny[1]
    texts = [prompt("What?"), prompt("And what is this?")]
    batch = processor(text=texts, padding=True, padding_side="left", return_tensors="pt")
    assert batch["input_ids"].shape[1] < 30 < batch["input_ids"].shape[1] + OPTIONS["max_new_tokens"]
    embeds = {"inputs_embeds": model.get_input_embeddings()(batch["input_ids"])}
    embeds["attention_mask"] = batch["attention_mask"]
    torch.testing.assert_close(step_logits(model, embeds), step_logits(model, batch), atol=2e-5, rtol=0)


def test_a_cache_that_is_kept_beyond_the_limit_would_answer_otherwise(tiny, monkeypatch):
    """So the test above can fail."""
    model, processor = with_limit(tiny[0], 60), tiny[1]
    batch = processor(text=prompt("What?", 1), images=PICTURES[0].resize((40, 90)), return_tensors="pt")
    assert batch["input_ids"].shape[1] < 60
    monkeypatch.setattr(Phi3VForCausalLM, "_crosses", lambda *_: False)
    difference = (step_logits(model, batch) - step_logits(model, batch, use_cache=False)).abs().amax(dim=(1, 2))
    assert difference[-1] > 1e-3 and difference[0] < 2e-5


def test_beams_and_samples_run(tiny):
    model, processor = tiny
    batch = processor(text=prompt("What?", 1), images=PICTURES[0], return_tensors="pt")
    for options in ({"num_beams": 3, "do_sample": False}, {"do_sample": True}):
        assert model.generate(**batch, max_new_tokens=5, **options).shape[0] == 1


# Files


@pytest.mark.slow
def test_published_files_load_as_they_are_and_run_no_code(published, monkeypatch):
    def no_prompt(*_):
        raise AssertionError("asks whether to run code from the hub")

    monkeypatch.setattr("builtins.input", no_prompt)
    folder, original = published
    assert type(AutoConfig.from_pretrained(folder)).__name__ == "Phi3VConfig"
    assert isinstance(AutoImageProcessor.from_pretrained(folder), Phi3VImageProcessor)
    processor = AutoProcessor.from_pretrained(folder)
    assert isinstance(processor, Phi3VProcessor) and processor.image_processor.num_crops == 4
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = prompt("What is shown in this image?")
    assert tokenizer(text)["input_ids"] == processor(text=text)["input_ids"][0]
    finer = AutoProcessor.from_pretrained(folder, num_crops=7)
    assert finer.image_processor.num_crops == 7 and "num_crops" not in finer.tokenizer.init_kwargs
    for auto in (AutoModelForImageTextToText, AutoModelForCausalLM):
        model = auto.from_pretrained(folder)
        assert isinstance(model, Phi3VForCausalLM) and model.config._attn_implementation == "sdpa"
        assert model.generation_config.eos_token_id == [32007, 32000]
        for name, weight in original.state_dict().items():
            assert torch.equal(model.state_dict()[name].float(), weight.to(model.dtype).float()), name


def test_the_model_without_its_head_loads(published):
    model = AutoModel.from_pretrained(published[0])
    for name, weight in published[1].model.state_dict().items():
        assert torch.equal(model.state_dict()[name].float(), weight.to(model.dtype).float()), name


def test_a_merged_adapter_is_saved_under_the_published_names(published, tmp_path):
    model = AutoModelForImageTextToText.from_pretrained(published[0], dtype=torch.float32)
    merged = adapted(model, vision=True).merge_and_unload()
    merged.save_pretrained(tmp_path)
    names = [published_name(name) for name, _ in model.named_parameters()]
    with (
        safe_open(tmp_path / "model.safetensors", "pt") as file,
        safe_open(published[0] / "model.safetensors", "pt") as before,
    ):
        assert sorted(file.keys()) == sorted(before.keys()) == sorted(names)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path)
    for name, weight in merged.state_dict().items():
        assert torch.equal(again.state_dict()[name], weight), name


@pytest.mark.slow
def test_the_packages_loader_takes_published_files(published):
    model, processor = load_model(published[0], bits=4, max_pixels=2 * 336**2)
    assert processor.image_processor.num_crops == 2
    batch = VisionCollator(processor)([make_row("What is it?", "A red bag.", [PICTURES[0]])])
    loss = model(**batch).loss
    assert loss.isfinite()
    labels = batch["labels"][0]
    assert processor.tokenizer.decode(labels[labels != -100]).strip() == "A red bag.<|end|>"
    assert "Linear4bit" in type(model.model.layers[0].mlp.down_proj).__name__
    assert "Linear4bit" not in type(model.model.vision_embed_tokens.img_projection[0]).__name__


def test_saved_and_loaded_again_under_the_published_names(tiny, tmp_path):
    model, processor = tiny
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert set(file.keys()) == {published_name(name) for name, _ in model.named_parameters()}
        assert any("img_processor.vision_model.encoder" in name for name in file.keys())
    again = AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
    again.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (tmp_path / "model.safetensors").read_bytes()
    assert again.generation_config.eos_token_id == model.generation_config.eos_token_id
    loaded = AutoProcessor.from_pretrained(tmp_path)
    rows = [make_row("What?", "A bag.", [PICTURES[0]])]
    one, other = VisionCollator(processor)(rows), VisionCollator(loaded)(rows)
    assert all(torch.equal(one[name], other[name]) for name in one)
    with torch.no_grad():
        assert torch.equal(model(**one).logits, again(**other).logits)


def test_unsloth_is_not_asked_for_what_it_does_not_have(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(models, "choose_backend", lambda backend: "unsloth")
    assert not models._runs_on_unsloth("auto", tiny[1])
    with pytest.raises(ValueError, match="Unsloth does not run phi-3-vision: it does not have phi3_v"):
        models._runs_on_unsloth("unsloth", tiny[1])


# Training


def adapted(model, **options):
    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules=lora_targets(model, **options), init_lora_weights=False)
    return get_peft_model(copy.deepcopy(model), config).train()


def gradients(model, batch):
    model(**batch).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad and p.grad is not None}


@pytest.mark.parametrize("vision", [False, True])
def test_checkpointing_changes_no_gradient(tiny, vision):
    model, processor = tiny
    batch = VisionCollator(processor)([make_row("What?", "A bag.", PICTURES[:2])])
    plain = adapted(model, vision=vision)
    expected = gradients(plain, batch)
    saving = adapted(model, vision=vision)
    saving.gradient_checkpointing_enable()
    saving.enable_input_require_grads()
    found = gradients(saving, batch)
    assert found.keys() == expected.keys() and any("layers.0" in name for name in found)
    assert any("vision" in name for name in found) == vision
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], atol=1e-6, rtol=0)


def test_a_frozen_tower_keeps_no_graph(tiny):
    """Not even when peft asks the embeddings for gradients, as checkpointing needs it."""
    model = adapted(tiny[0])
    model.enable_input_require_grads()
    batch = tiny[1](text=prompt("What?", 1), images=PICTURES[0], return_tensors="pt")
    features = model.get_image_features(batch["pixel_values"], batch["image_sizes"])
    assert not features.requires_grad


def test_the_image_tower_stays_on_one_device(tiny):
    """Its separators and its projection meet the output of CLIP, wherever that was computed."""
    model = copy.deepcopy(tiny[0]).to("meta")
    every = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    for share in range(5, 100, 5):
        memory = {"cpu": every * share // 100, "disk": every * 2}
        plan = infer_auto_device_map(model, max_memory=memory, no_split_module_classes=list(model._no_split_modules))
        assert not [name for name in plan if name.startswith("model.vision_embed_tokens.")]


def test_bfloat16_answers_like_float32(tiny):
    model, processor = tiny
    batch = processor(text=prompt("What?", 1), images=PICTURES[0], return_tensors="pt")
    with torch.no_grad():
        wanted = model(**batch).logits
        found = copy.deepcopy(model).to(torch.bfloat16)(**batch).logits
    assert found.dtype == torch.bfloat16
    assert torch.nn.functional.cosine_similarity(found.float(), wanted, dim=-1).min() > 0.99
