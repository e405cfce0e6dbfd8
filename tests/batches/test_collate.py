"""Batches of the families that have a tiny base against token ids, labels and losses computed by hand."""

import copy
import math
import re

import pytest
import torch
from datasets import Dataset
from PIL import Image
from tiny_families import FAMILIES, build
from tokenizers.processors import TemplateProcessing

from vlmhelpers.batches.collator import VisionCollator
from vlmhelpers.data.schema import FEATURES, assistant, image_part, make_row, text_part, user
from vlmhelpers.families.qwen_vl import QWEN3_VL
from vlmhelpers.models.loading import set_max_pixels
from vlmhelpers.samples.drawing import sample_products
from vlmhelpers.training.callbacks import watch

LLAMA, PHI, INTERNVL = "llama-3.2-vision", "phi-3-vision", "internvl"
QWENS = ("qwen2.5-vl", "qwen3-vl")

# How a family writes a conversation: its beginning, a turn's header, its end token, what follows, an image.
SPELLING = {
    "llama-3.2-vision": (
        "<|begin_of_text|>", "<|start_header_id|>{}<|end_header_id|>\n\n", "<|eot_id|>", "",
        ("", "<|image|>", ""),
    ),
    "qwen2.5-vl": (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n", "<|im_start|>{}\n", "<|im_end|>",
        "\n",
        ("<|vision_start|>", "<|image_pad|>", "<|vision_end|>"),
    ),
    "qwen3-vl": (
        "", "<|im_start|>{}\n", "<|im_end|>", "\n", ("<|vision_start|>", "<|image_pad|>", "<|vision_end|>"),
    ),
    "phi-3-vision": ("<s>", "<|{}|>\n", "<|end|>", "\n", ("", "<|image|>", "<s>\n")),
    "internvl": ("", "<|im_start|>{}\n", "<|im_end|>", "\n", ("<img>", "<IMG_CONTEXT>", "</img>\n")),
}  # fmt: skip
CLOSE = {"atol": 1e-5, "rtol": 0}  # for logits of about 1
PICTURES = [picture for _, picture in sample_products(4, "collate", size=96)]


@pytest.fixture(scope="session")
def tiny():
    """family -> (untrained model, processor); Qwens keep pictures of 32x32 to 128x128 pixels, Phi cuts up to 4."""
    built = {}
    for family in FAMILIES:
        model, processor = build(family)
        if family in QWENS:
            processor.image_processor.size = {"shortest_edge": 32**2, "longest_edge": 128**2}
        if family == PHI:
            processor.image_processor.num_crops = 4
        if family == INTERNVL:
            processor.image_processor.max_patches = 1
        built[family] = model.eval(), processor
    return built


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture
def processor(tiny, family):
    return tiny[family][1]


@pytest.fixture
def model(tiny, family):
    return tiny[family][0]


def picture(place, width, height):
    return PICTURES[place].resize((width, height))


def chat(images, *texts):
    """A row with `images` in its first turn; the texts are by turns the user's and the assistant's."""
    turns = [assistant(text) if i % 2 else user(text) for i, text in enumerate(texts)]
    turns[0] = user(texts[0], len(images))
    return {"messages": turns, "images": images}


def by_hand(processor, family, row, trained=None):
    """(ids, labels) of a row, from the literal turn strings; every piece is tokenised by itself.

    A Qwen image of w x h pixels, multiples of 16 here, takes w/16 * h/16 tokens, a Llama one a single token, a Phi one
    those of its tiles, an InternVL one those of a tile.
    `trained` are the places of the turns to learn; without it, all assistant turns are.
    """
    begin, header, end, after, (before_image, image_token, after_image) = SPELLING[family]
    pieces, images = [(begin, False)], iter(row["images"])  # (text, whether it is learned)
    for place, message in enumerate(row["messages"]):
        learn = place in trained if trained else message["role"] == "assistant"
        pieces.append((header.format(message["role"]), False))
        for part in message["content"]:
            text, image = part["text"], next(images) if part["type"] == "image" else None
            if image:
                count = (image.width // 16) * (image.height // 16)
                count = {LLAMA: 1, PHI: phi_tokens(*image.size), INTERNVL: 9}.get(family, count)
                text = before_image + image_token * count + after_image
            pieces.append((text, learn))
        pieces += [(end, learn), (after, False)]
    encoded = [(processor.tokenizer(text, add_special_tokens=False)["input_ids"], learn) for text, learn in pieces]
    labels = [token if learn else -100 for tokens, learn in encoded for token in tokens]
    return [token for tokens, _ in encoded for token in tokens], labels


def phi_tokens(width, height):
    """Up to 4 tiles of 48 x 48 pixels with 3 lines of 3 tokens each, as the tiny Phi-3-Vision has them."""
    long, ratio = 1, max(width, height) / min(width, height)
    while (long + 1) * math.ceil((long + 1) / ratio) <= 4:
        long += 1
    short = math.ceil(int(long * 48 / ratio) / 48)
    return 9 * long * short + 9 + 1 + 3 * ((short if width >= height else long) + 1)


def real(batch, name, row):
    """One row of a batch without its padding."""
    return batch[name][row][batch["attention_mask"][row].bool()]


def trained_text(processor, batch, row=0):
    labels = batch["labels"][row]
    return processor.tokenizer.decode(labels[labels != -100])


def logits(model, batch):
    with torch.no_grad():
        return model(**{name: tensor for name, tensor in batch.items() if name != "labels"}).logits


ROWS = {
    "an image": chat([picture(0, 48, 64)], "What is this?", "A red striped scarf for $20."),
    "two images": chat([picture(0, 64, 32), picture(1, 48, 48)], "Compare.", "One is red,\n the other blue."),
    "three turns": chat([picture(2, 32, 48)], "What is it?", "A bag.", "Its color?", "Red.", "Sure?", "  Yes. "),
    "text only": chat([], "Say é and 🙂.", "é🙂"),
    "no spaces": chat([picture(3, 80, 32)], "", "x"),
}


@pytest.mark.parametrize("name", ROWS)
def test_ids_and_labels_are_those_computed_by_hand(processor, family, name):
    ids, labels = by_hand(processor, family, ROWS[name])
    batch = VisionCollator(processor)([ROWS[name]])
    assert batch["input_ids"][0].tolist() == ids
    assert batch["labels"][0].tolist() == labels
    assert batch["attention_mask"].all()


def test_images_between_texts_and_in_later_turns_keep_their_places(processor, family):
    between = {"role": "user", "content": [text_part("First"), image_part(), text_part("then"), image_part()]}
    later = user("And this?", images=1)
    images = [picture(0, 48, 48), picture(1, 32, 64), picture(2, 96, 48)]
    row = {"messages": [between, assistant("Bags."), later, assistant("A mug.")], "images": images}
    batch = VisionCollator(processor)([row])
    assert (batch["input_ids"][0].tolist(), batch["labels"][0].tolist()) == by_hand(processor, family, row)


def test_a_system_turn_is_never_trained(processor, family):
    row = chat([], "Hello", "A hat.")
    row["messages"].insert(0, {"role": "system", "content": [text_part("Be brief.")]})
    batch = VisionCollator(processor)([row])
    assert trained_text(processor, batch) == "A hat." + SPELLING[family][2]


def test_the_choice_of_what_to_train_on(processor, family):
    row = ROWS["three turns"]
    last = VisionCollator(processor, train_on="last")([row])
    assert last["labels"][0].tolist() == by_hand(processor, family, row, trained=[5])[1]
    everything = VisionCollator(processor, train_on="all")([row, ROWS["an image"]])
    around = [token for token in ("<img>", "</img>") if family == INTERNVL]  # which its processor writes
    left_out = [processor.image_token_id, processor.tokenizer.bos_token_id]
    left_out += processor.tokenizer.convert_tokens_to_ids(around)
    for i in range(2):
        ids, labels = real(everything, "input_ids", i).tolist(), real(everything, "labels", i).tolist()
        assert labels == [-100 if token in left_out else token for token in ids]
    assert (everything["labels"][everything["attention_mask"] == 0] == -100).all()
    with pytest.raises(ValueError, match="choose one of assistant, last, all"):
        VisionCollator(processor, train_on="answers")


def batches(family):
    """Batches whose rows differ in length and in number of images; without any, too, where allowed."""
    mixed = [ROWS["an image"], ROWS["text only"], ROWS["two images"], ROWS["three turns"]]
    three = chat([picture(1, 48, 48)] * 2 + [picture(3, 64, 64)], "Which is odd?", "The last one.")
    if family != LLAMA:
        return [mixed]
    return [
        [row for row in mixed if row["images"]],
        [ROWS["two images"], three],
        [ROWS["text only"], chat([], "a", "b")],
    ]


def test_a_batch_equals_its_rows_one_by_one(processor, model, family):
    collator = VisionCollator(processor)
    for rows in batches(family):
        batch = collator(rows)
        together, losses, tokens = logits(model, batch), [], []
        for i, row in enumerate(rows):
            alone = collator([row])
            assert torch.equal(real(batch, "input_ids", i), alone["input_ids"][0])
            assert torch.equal(real(batch, "labels", i), alone["labels"][0])
            assert (batch["labels"][i][batch["attention_mask"][i] == 0] == -100).all()
            torch.testing.assert_close(together[i, : alone["input_ids"].shape[1]], logits(model, alone)[0], **CLOSE)
            losses.append(model(**alone).loss.item())
            tokens.append((alone["labels"] != -100).sum().item())
        mean = sum(loss * n for loss, n in zip(losses, tokens, strict=True)) / sum(tokens)
        assert model(**batch).loss.item() == pytest.approx(mean, abs=1e-5)


def test_pixels_of_a_batch_are_those_of_its_rows(processor, family):
    collator, rows = VisionCollator(processor), [ROWS["two images"], ROWS["an image"]]
    batch, alone = collator(rows), [collator([row]) for row in rows]
    if family in QWENS:
        for name in ("pixel_values", "image_grid_thw"):
            assert torch.equal(batch[name], torch.cat([row[name] for row in alone]))
        assert batch["image_grid_thw"].tolist() == [[1, 4, 8], [1, 6, 6], [1, 8, 6]]  # rows and columns of 8 pixels
    elif family == PHI:
        for name in ("pixel_values", "image_sizes"):
            assert torch.equal(batch[name], torch.cat([row[name] for row in alone]))
        assert batch["image_sizes"].tolist() == [[48, 96], [96, 96], [96, 96]]
    elif family == INTERNVL:
        assert torch.equal(batch["pixel_values"], torch.cat([row["pixel_values"] for row in alone]))
        assert batch["pixel_values"].shape == (3, 3, 48, 48)
    else:
        assert torch.equal(batch["pixel_values"][0], alone[0]["pixel_values"][0])
        assert torch.equal(batch["pixel_values"][1, 0], alone[1]["pixel_values"][0, 0])
        assert not torch.equal(batch["pixel_values"][0, 0], batch["pixel_values"][0, 1])


def test_padding_on_either_side_gives_the_same_logits(processor, model, family):
    collator = VisionCollator(processor)
    for rows in batches(family):
        left, right = collator.prompts(rows), collator(rows)
        before, after = logits(model, left), logits(model, right)
        assert (left["attention_mask"][:, -1] == 1).all() and (right["attention_mask"][:, 0] == 1).all()
        assert "labels" not in left
        for i in range(len(rows)):
            prompt, length = real(left, "input_ids", i), int(left["attention_mask"][i].sum())
            assert torch.equal(prompt, right["input_ids"][i, :length])
            torch.testing.assert_close(before[i, -length:], after[i, :length], **CLOSE)


@pytest.mark.parametrize("name", ROWS)
def test_prompts_are_what_the_template_gives_for_inference(processor, family, name):
    row = ROWS[name]
    images = iter(row["images"])
    messages = [
        m | {"content": [p | {"image": next(images)} if p["type"] == "image" else p for p in m["content"]]}
        for m in row["messages"][:-1]
    ]
    expected = processor.apply_chat_template(
        messages, tokenize=True, add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )
    collator = VisionCollator(processor)
    batch, trained = collator.prompts([row]), collator([row])
    assert batch.keys() == expected.keys()
    assert all(torch.equal(batch[key], expected[key]) for key in expected)
    length = batch["input_ids"].shape[1]
    assert torch.equal(trained["input_ids"][0, :length], batch["input_ids"][0])
    assert trained["labels"][0, length] != -100
    open_ended = row | {"messages": row["messages"][:-1]}
    assert torch.equal(collator.prompts([open_ended])["input_ids"], batch["input_ids"])


def test_llama_sequences_begin_once_even_if_the_tokenizer_adds_a_beginning():
    """Meta's own tokenizer does that, and the chat template writes one as well."""
    _, processor = build(LLAMA)
    begin, token = processor.tokenizer.bos_token, processor.tokenizer.bos_token_id
    processor.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{begin} $A", special_tokens=[(begin, token)]
    )
    assert processor.tokenizer("a")["input_ids"][0] == token
    collator, rows = VisionCollator(processor), [ROWS["an image"], ROWS["two images"]]
    for batch in (collator(rows), collator.prompts(rows), collator([ROWS["text only"]])):
        begins = batch["input_ids"] == token
        assert begins.sum(dim=1).tolist() == [1] * len(begins)
        assert torch.equal(begins.int().argmax(dim=1), batch["attention_mask"].argmax(dim=1))


def test_llama_tokens_see_their_images_and_no_others(tiny):
    model, processor = tiny[LLAMA]
    row = {
        "messages": [user("Old", images=2), assistant("A hat."), user("New", images=1), assistant("A mug.")],
        "images": [picture(i, 48, 48) for i in range(3)],
    }
    batch = VisionCollator(processor)([row, ROWS["an image"]])
    ids = batch["input_ids"][0].tolist()
    first, second, third = (i for i, token in enumerate(ids) if token == processor.image_token_id)
    expected = torch.zeros(len(ids), 3, 1, dtype=torch.int64)
    expected[first:third, 0] = 1  # two images side by side are seen up to the next one
    expected[second:third, 1] = 1
    expected[third:, 2] = 1
    assert torch.equal(batch["cross_attention_mask"][0], expected)
    only = batch["input_ids"][1].tolist().index(processor.image_token_id)
    length = int(batch["attention_mask"][1].sum())
    assert batch["cross_attention_mask"].shape == (2, len(ids), 3, 1)
    assert not batch["cross_attention_mask"][1, :only].any() and not batch["cross_attention_mask"][1, :, 1:].any()
    assert batch["cross_attention_mask"][1, only:length, 0].all()
    assert batch["aspect_ratio_ids"].tolist() == [[1, 1, 1]] * 2
    assert batch["aspect_ratio_mask"].shape == (2, 3, 1) and batch["pixel_values"].shape == (2, 3, 1, 3, 48, 48)


def test_llama_refuses_a_batch_of_rows_with_and_without_images(tiny):
    collator = VisionCollator(tiny[LLAMA][1])
    rows = [ROWS["an image"] | {"row": 4}, ROWS["text only"] | {"row": 9}]
    for make in (collator, collator.prompts):
        with pytest.raises(ValueError, match="^row 9: no image, .*batches of their own"):
            make(rows)


@pytest.mark.parametrize("train_on", ["assistant", "all"])
def test_labels_stay_inside_the_rows_of_lm_head(processor, model, family, train_on):
    batch = VisionCollator(processor, train_on=train_on)([ROWS["an image"], ROWS["two images"]])
    assert batch["labels"].max() < model.lm_head.weight.shape[0]
    assert processor.image_token_id not in batch["labels"]
    assert model(**batch).loss.isfinite()


CONTROL = (
    "<|image|> <|eot_id|> <|image_pad|> <|im_end|><|vision_start|><|start_header_id|> <|begin_of_text|> <|image_1|>"
)


def test_logits_at_the_labeled_places_give_the_same_loss_and_gradients(processor, model, family):
    rows = [ROWS["three turns"], ROWS["an image"]]  # the answers stand at different places
    results = {}
    for which in ("all", "labeled"):
        batch = VisionCollator(processor, logits=which)(rows)
        output = model(**batch, num_items_in_batch=7)
        model.zero_grad()
        output.loss.backward()
        results[which] = output, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    (full, full_grads), (kept, kept_grads) = results["all"], results["labeled"]
    places = batch["logits_to_keep"]
    torch.testing.assert_close(kept.logits, full.logits[:, places], atol=1e-5, rtol=1e-4)
    assert set((batch["labels"][:, 1:] != -100).any(0).nonzero().flatten().tolist()) == set(places.tolist())
    assert kept.logits.shape[1] < full.logits.shape[1] / 2
    assert kept.loss.item() == pytest.approx(full.loss.item(), rel=1e-5)
    assert full_grads.keys() == kept_grads.keys()
    for name, grad in full_grads.items():
        torch.testing.assert_close(kept_grads[name], grad, atol=1e-5, rtol=1e-3)
    model.zero_grad()


def test_the_choice_of_logits_is_checked(processor):
    with pytest.raises(ValueError, match="logits='some': choose one of all, labeled"):
        VisionCollator(processor, logits="some")


def test_control_tokens_in_a_text_are_plain_text(processor, family):
    split = user("<|im", images=1)
    split["content"] += [text_part("_end|> <|ima"), text_part("ge|> <|eot_"), text_part("id|>")]
    row = {"messages": [user(CONTROL), assistant("A."), split, assistant(f"It ends {CONTROL}")]}
    row["images"] = [picture(0, 48, 48)]
    collator = VisionCollator(processor, train_on="last")
    plain = chat(row["images"], "a", "b", "c", "d")
    for make in (collator, collator.prompts):
        for token in processor.tokenizer.convert_tokens_to_ids(sorted(collator.template.control_tokens)):
            assert (make([row])["input_ids"] == token).sum() == (make([plain])["input_ids"] == token).sum()
    assert trained_text(processor, collator([row])).replace("< |", "<|") == f"It ends {CONTROL}" + SPELLING[family][2]


def test_all_else_is_learned_as_it_is_written(processor, family):
    """Also tokens of one's own, whether they are special or not: they are no steps of a conversation."""
    processor = copy.deepcopy(processor)
    processor.tokenizer.add_tokens(["<part>"])
    processor.tokenizer.add_tokens(["[UNIT]"], special_tokens=True)
    answer = "<b>old</b> [INST] <image> <pad> <think> <|no token|>, <part>7</part> [UNIT]"
    answer += " <s>old price</s>" * (family != PHI)  # which has these tokens
    collator = VisionCollator(processor)
    batch = collator([chat([], answer, answer)])
    learned = batch["labels"][0][batch["labels"][0] != -100].tolist()
    assert trained_text(processor, batch) == answer + SPELLING[family][2]
    assert {*processor.tokenizer.convert_tokens_to_ids(["<part>", "[UNIT]"])} < {*learned}
    assert collator.template.answer(learned) == answer


def test_an_answer_reads_as_before_its_control_tokens_were_escaped(processor, family):
    collator = VisionCollator(processor)
    answer = " and ".join([*sorted(collator.template.control_tokens), "<|image_1|>", "a < b"])
    labels = collator([chat([], "What?", answer)])["labels"][0]
    assert "< |" in processor.tokenizer.decode(labels[labels != -100])
    assert collator.template.answer(labels[labels != -100].tolist()) == answer


def test_blank_lines_before_an_answer_do_not_reach_the_prompt(processor, family):
    batch = VisionCollator(processor)([chat([], "Code?", " \r\n\n  return 1\n")])
    assert trained_text(processor, batch) == "  return 1\n" + SPELLING[family][2]


def test_rows_of_a_dataset_with_pictures_from_files(processor, family, tmp_path):
    paths = []
    for i in range(2):
        paths.append(str(tmp_path / f"{i}.png"))
        picture(i, 64, 48).save(paths[-1])
    rows = [make_row("Which?", "The red one.", paths), make_row("Hello", "Hi.")]
    dataset = Dataset.from_list(rows, features=FEATURES).add_column("row", [1, 2]).add_column("shop", ["a", "b"])
    rows[0]["images"] = [picture(i, 64, 48) for i in range(2)]
    collator = VisionCollator(processor)
    for stored, row in zip(dataset, rows, strict=True):
        batch, expected = collator([stored]), collator([row])
        assert batch.keys() == expected.keys()
        assert all(torch.equal(batch[key], expected[key]) for key in batch)


def test_images_are_repaired_for_training_and_for_answering(processor, family):
    turned = picture(0, 64, 32)
    turned.getexif()[0x0112] = 6  # shown after a quarter turn
    clear = Image.new("RGBA", (48, 48), (200, 0, 0, 0))
    grey = Image.new("I;16", (48, 48), 65535)
    collator = VisionCollator(processor)
    row = make_row("What?", "A bag.", [turned, clear, grey])
    white = Image.new("RGB", (48, 48), "white")
    upright = turned.transpose(Image.Transpose.ROTATE_270)
    upright.getexif().clear()
    expected = collator([make_row("What?", "A bag.", [upright, white, white])])
    for batch in (collator([row]), collator.prompts([row])):
        assert torch.equal(batch["pixel_values"], expected["pixel_values"])


@pytest.mark.parametrize("family", QWENS)
@pytest.mark.parametrize("sizes", [[(640, 400)], [(300, 300), (64, 200), (33, 1000)], [(50, 50)] * 3])
def test_too_long_for_max_length_proposes_a_cap_that_really_fits(processor, sizes, monkeypatch):
    large = {"shortest_edge": 56**2, "longest_edge": 10**6}
    monkeypatch.setattr(processor.image_processor, "size", large)
    row = chat([picture(i, *size) for i, size in enumerate(sizes)], "Compare.", "All bags.") | {"row": 31}
    ids = VisionCollator(processor)([row])["input_ids"][0]
    image_tokens = int((ids == processor.image_token_id).sum())
    collator = VisionCollator(processor, max_length=len(ids) - image_tokens // 2)
    with pytest.raises(ValueError, match=f"^row 31: {len(ids)} tokens, {image_tokens} of them image") as error:
        collator([row])
    assert f"max_length={collator.max_length}" in str(error.value)
    set_max_pixels(processor, int(re.search(r"max_pixels=(\d+)", str(error.value)).group(1)))
    shorter = len(collator([row])["input_ids"][0])
    assert 0.7 * collator.max_length < shorter <= collator.max_length < len(ids)


@pytest.mark.parametrize("room, tiles", [(140, 5), (100, 2)])
def test_too_long_for_max_length_proposes_fewer_tiles_of_phi(tiny, monkeypatch, room, tiles):
    processor = tiny[PHI][1]
    monkeypatch.setattr(processor.image_processor, "num_crops", 16)
    row = chat([picture(0, 300, 150), picture(1, 50, 200)], "Compare.", "All bags.")
    ids = VisionCollator(processor)([row])["input_ids"][0]
    collator = VisionCollator(processor, max_length=room)
    with pytest.raises(ValueError, match=rf"{len(ids)} tokens.*max_pixels={tiles * 48**2}\) makes it fit"):
        collator([row])
    set_max_pixels(processor, tiles * 48**2)
    assert processor.image_processor.num_crops == tiles and len(collator([row])["input_ids"][0]) <= room
    set_max_pixels(processor, (tiles + 1) * 48**2)
    with pytest.raises(ValueError, match="makes it fit"):
        collator([row])


def test_max_length_itself_is_allowed_and_padding_does_not_count(processor, family):
    rows = [chat([picture(0, 48, 48)], "Hi", "A bag."), chat([picture(0, 48, 48)], "Hi", "A bag and a mug.")]
    longest = VisionCollator(processor)(rows)["input_ids"].shape[1]
    assert VisionCollator(processor, max_length=longest)(rows)["input_ids"].shape[1] == longest
    with pytest.raises(ValueError, match="row 2 of the batch"):
        VisionCollator(processor, max_length=longest - 1)(rows)


def test_too_long_for_max_length_where_no_cap_helps(tiny):
    long_text = chat([picture(0, 64, 64)], "word " * 60, "A bag.")
    with pytest.raises(ValueError, match="its text leaves no room for its images"):
        VisionCollator(tiny["qwen3-vl"][1], max_length=50)([long_text])
    several = chat(PICTURES[:3], "Compare.", "Bags.")
    fewer = "24 tokens that its text leaves are too few for its images at any size, so show fewer of them or raise"
    with pytest.raises(ValueError, match=f"165 of them image tokens.*: the {fewer} max_length. Nothing"):
        VisionCollator(tiny[PHI][1], max_length=50)([several])
    with pytest.raises(
        ValueError, match="1 of them image tokens.*shorten its text, show fewer or smaller images.*no pixel cap"
    ):
        VisionCollator(tiny[LLAMA][1], max_length=50)([long_text])
    with pytest.raises(ValueError, match=": shorten its text or raise max_length. Nothing is cut"):
        VisionCollator(tiny["qwen3-vl"][1], max_length=50)([chat([], "word " * 60, "A bag.")])


def test_the_largest_cap_counts_in_tokens_of_the_real_size(tiny, monkeypatch):
    processor = tiny["qwen3-vl"][1]
    big, small, strip = picture(0, 128, 128), picture(1, 32, 48), picture(2, 512, 16)  # 64, 6 and 32 tokens
    assert QWEN3_VL.largest_cap(processor, [big], 20) == 20 * 16**2
    assert QWEN3_VL.largest_cap(processor, [big, small], 20) == 14 * 16**2
    assert QWEN3_VL.largest_cap(processor, [big, small], 9) == 4 * 16**2
    assert QWEN3_VL.largest_cap(processor, [big, big, small], 21) == 7 * 16**2
    assert QWEN3_VL.largest_cap(processor, [strip], 10) == 3 * 16**2  # never thinner than a token
    assert QWEN3_VL.largest_cap(processor, [big], 0) is None
    monkeypatch.setattr(processor.image_processor, "size", {"shortest_edge": 48**2, "longest_edge": 48**2})
    assert QWEN3_VL.largest_cap(processor, [picture(0, 32, 32)], 5) == 4 * 16**2  # the lower limit, too


@pytest.mark.parametrize(
    ("keep_columns", "which", "loss_type"),
    [(True, "all", "chunked_nll"), (False, "all", "chunked_nll"), (True, "labeled", "nll")],
)
def test_sft_trainer_trains_on_the_answers_alone(
    model, processor, family, keep_columns, which, loss_type, tmp_path, monkeypatch
):
    from trl import SFTConfig, SFTTrainer

    monkeypatch.setattr(model, "forward", model.forward)  # the trainer replaces it: give the original back

    rows = [
        make_row("What?", "A bag.", [picture(0, 48, 48)]),
        make_row("What is it?", "A red mug.", [picture(1, 48, 48)]),
    ]
    dataset = Dataset.from_list(rows, features=FEATURES).add_column("row", [1, 2])
    collator = VisionCollator(processor, logits=which)
    expected = model(**collator(rows)).loss.item()
    arguments = SFTConfig(
        tmp_path, per_device_train_batch_size=2, max_steps=1, learning_rate=0.0, max_length=None, bf16=False,
        use_cpu=True, remove_unused_columns=not keep_columns, logging_steps=1, report_to=[],
        save_strategy="no", disable_tqdm=True, loss_type=loss_type,
    )  # fmt: skip
    trainer = SFTTrainer(model, arguments, collator, dataset, processing_class=processor)
    watch(trainer)
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(expected, abs=1e-3)
    model.eval()
