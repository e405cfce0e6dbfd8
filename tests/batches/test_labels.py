"""Answers are found under chat templates that the tiny bases do not have, and in a family of another kind."""

import re

import pytest
import torch
from datasets import Dataset
from tiny_families import build
from transformers import BatchFeature

from vlmhelpers.batches.collator import VisionCollator
from vlmhelpers.batches.validation import check_dataset, rules_of
from vlmhelpers.data.schema import FEATURES, assistant, make_pair, make_prompt, make_rated, make_row, text_part, user
from vlmhelpers.samples.drawing import sample_products

PICTURES = [picture for _, picture in sample_products(2, "labels", size=96)]

# Chat templates in Qwen's spelling.
TEXT = "{% for p in m.content %}{{ p.text }}{% endfor %}"
PROMPT = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
TURNS = "{% for m in messages %}<|im_start|>{{ m.role }}\n" + TEXT + "<|im_end|>\n{% endfor %}" + PROMPT
REASONING = (  # writes the reasoning of the last answer only, and an empty block where there is none
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% set text = m.content[0].text %}"
    "{% if m.role == 'assistant' and loop.last %}"
    "{% set thought = text.split('</think>')[0].split('<think>')[-1].strip() if '</think>' in text else '' %}"
    "<think>\n{{ thought }}\n</think>\n\n{% endif %}"
    "{{ text.split('</think>')[-1].strip() }}<|im_end|>\n{% endfor %}" + PROMPT
)


@pytest.fixture(scope="module")
def processor():
    return build("qwen3-vl")[1]


@pytest.fixture
def with_template(processor):
    """Makes a collator whose processor has another chat template."""

    def make(template, **options):
        processor.chat_template = template
        return VisionCollator(processor, **options)

    return make


def chat(*texts):
    """A row whose texts are by turns the user's and the assistant's."""
    return {"messages": [assistant(text) if i % 2 else user(text) for i, text in enumerate(texts)], "images": []}


def trained_text(collator, batch, row=0):
    labels = batch["labels"][row]
    return collator.processor.tokenizer.decode(labels[labels != -100])


def test_a_template_that_trims_answers(with_template):
    collator = with_template(TURNS.replace("p.text", "p.text | trim"))
    batch = collator([chat("a", "  A bag.  ", "b", "Red. ")])
    assert trained_text(collator, batch) == "A bag.<|im_end|>Red.<|im_end|>"


@pytest.mark.parametrize(
    "text",
    [
        "\ue000the answer\ue001",
        "\ue000the answer0\ue001\ue000the answer",
        "a\0b",
        "\u202ea",
        "e\u0301\u0301",
        "{{ 1 }}",
    ],
)
def test_texts_that_a_mark_could_be_taken_for(with_template, text):
    collator = with_template(TURNS)
    batch = collator([chat(text, f"A {text} bag.", "b", "Red.")])
    assert trained_text(collator, batch) == f"A {text} bag.<|im_end|>Red.<|im_end|>"


def test_a_text_of_a_hundred_thousand_characters(with_template):
    collator = with_template(TURNS)
    batch = collator([chat("x " * 50_000, "A bag.")])
    assert trained_text(collator, batch) == "A bag.<|im_end|>"


@pytest.mark.parametrize("header, before", [("<think>\n", ""), ("", "<think>\n")])
def test_a_template_that_rewrites_the_reasoning_of_earlier_turns(with_template, header, before):
    """It can teach the last answer alone: the earlier one stands there without its reasoning."""
    template = REASONING.replace("assistant\n{% endif %}", "assistant\n" + header + "{% endif %}")
    answers = ["<think>\nI see cloth.\n</think>\n\nA bag.", "<think>\nIt glows.\n</think>\n\nRed."]
    row = chat("What?", answers[0], "Its color?", answers[1])
    with pytest.raises(ValueError, match="^row 8: the answer of turn 2 loses its reasoning .*train_on=.last"):
        with_template(template)([row | {"row": 8}])
    collator = with_template(template, train_on="last")
    batch, prompt = collator([row]), collator.prompts([row])["input_ids"][0]
    assert trained_text(collator, batch) == f"{before}It glows.\n</think>\n\nRed.<|im_end|>"
    assert torch.equal(batch["input_ids"][0, : len(prompt)], prompt)
    assert batch["labels"][0, len(prompt)] != -100


def test_an_empty_reasoning_block_that_the_prompt_lacks_is_learned(with_template):
    collator = with_template(REASONING)
    batch = collator([chat("What?", "A bag.")])
    assert trained_text(collator, batch) == "<think>\n\n</think>\n\nA bag.<|im_end|>"


def test_a_template_that_changes_its_beginning_once_an_image_appears(with_template):
    """As Llama 3.2's own does: a conversation without images begins with a date."""
    parts = "messages | map(attribute='content') | sum(start=[]) | map(attribute='type')"
    date = "{% if 'image' not in " + parts + " %}<|im_start|>system\nToday<|im_end|>\n{% endif %}"
    turns = TURNS.replace("{{ p.text }}", "{{ '<|image_pad|>' if p.type == 'image' else p.text }}")
    collator = with_template(date + turns)
    row = {"messages": [user("Hello"), assistant("Hi."), user("This?", 1), assistant("A bag.")]}
    batch = collator([row | {"images": [PICTURES[0]]}])
    assert trained_text(collator, batch) == "Hi.<|im_end|>A bag.<|im_end|>"


def test_a_template_without_an_end_of_the_last_answer_gets_the_tokenizers_own(with_template):
    no_end = "{% for m in messages %}{{ m.role }}: " + TEXT + "\n{% endfor %}"
    collator = with_template(no_end + "{% if add_generation_prompt %}assistant:{% endif %}")
    assert trained_text(collator, collator([chat("What?", "A bag.")])) == " A bag.<|im_end|>"
    talk = {"messages": [user("Hello"), assistant("Hi."), user("This?"), assistant("A bag.")], "images": []}
    with pytest.raises(ValueError, match="no end token after an answer"):  # of the first one
        collator([talk])


def test_templates_that_cannot_be_followed_are_refused_with_the_row(with_template):
    row = chat("What?", "A bag.") | {"row": 5}
    with pytest.raises(ValueError, match="^row 5: .*does not write the text of content parts"):
        with_template("{% for m in messages %}{{ m.content | upper }}<|im_end|>{% endfor %}")([row])
    with pytest.raises(ValueError, match="^row 5: the chat template refuses .*can only concatenate str"):
        with_template("{% for m in messages %}{{ m.role + m.content }}<|im_end|>{% endfor %}")([row])
    joined = "{% for m in messages %}{{ m.role }}: " + TEXT + "<|im_end|>{% endfor %}"
    with pytest.raises(ValueError, match="^row 5: the tokenizer joins .*assistant: '.*'A bag."):
        with_template(joined + "{% if add_generation_prompt %}assistant: {% endif %}")([row])
    refuses = "{{ raise_exception('no system turn beside a picture') }}"
    for make in (with_template(refuses), with_template(refuses).prompts):
        with pytest.raises(ValueError, match="^row 5: .*no system turn beside a picture"):
            make([row])
    tells_early = "{{ messages[1].content[0].text if messages[1:] }}" + TURNS
    with pytest.raises(ValueError, match="^row 5: .*where the answer of turn 2 stands"):
        with_template(tells_early)([row])


NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system turn.') }}{% endif %}" + TURNS
ALTERNATING = "{% if messages[1:] and messages[1].role == messages[0].role %}{{ 1 // 0 }}{% endif %}" + TURNS


def test_rows_that_a_template_refuses_are_rejected_with_a_remedy(with_template):
    system = {"role": "system", "content": [text_part("Be brief.")]}
    sound, twice = make_row("What?", "A bag."), chat("What?", "A bag.")
    with_system = make_row("Which?", "That.") | {"messages": [system, user("Which?"), assistant("That.")]}
    twice["messages"].insert(0, user("Hello."))
    rows = Dataset.from_list([sound, with_system, twice], features=FEATURES)
    for template, row, begins, remedy in (
        (NO_SYSTEM, 2, "the chat template refuses the conversation: no system turn", "put the text of its system turn"),
        (ALTERNATING, 3, "the chat template refuses the conversation: ", "write its turns as the template takes them"),
    ):
        collator = with_template(template)
        (found,) = check_dataset(rows, collator.processor).rejected
        assert found["row"] == row and found["reason"].startswith(begins) and found["remedy"].startswith(remedy)
        with pytest.raises(ValueError, match=f"^row 9: {re.escape(found['reason'])}. Remedy: {remedy}"):
            collator([rows[row - 1] | {"row": 9}])


def test_the_template_sees_the_conversations_of_rows_of_every_kind(with_template):
    system = {"role": "system", "content": [text_part("Be brief.")]}
    rules = rules_of(with_template(NO_SYSTEM).processor)
    for row in (make_pair("Q?", "A.", "B."), make_rated("Q?", "A.", True), make_prompt("Q?", None)):
        assert not rules(row, [])
        ((reason, remedy),) = rules(row | {"prompt": [system, *row["prompt"]]}, [])
        assert "no system turn" in reason and "first user turn" in remedy


class NumberedImages(type("Phi3VProcessor", (), {})):  # by whose name its family is known
    """A processor as Phi-3-Vision's: `<|image_1|>` in the text, and what follows an image is begun anew."""

    model_input_names = ["input_ids", "attention_mask", "pixel_values"]
    begin, image_token, tokens_per_image = "<|endoftext|>", "<|image_pad|>", 5

    def __init__(self):
        self.tokenizer = build("qwen3-vl")[1].tokenizer
        self.tokenizer.bos_token = self.begin
        self.image_token_id = self.tokenizer.convert_tokens_to_ids(self.image_token)

    def apply_chat_template(self, messages, tokenize, add_generation_prompt):
        text, number = self.begin, 0
        for message in messages:
            text += f"<|im_start|>{message['role']}\n"
            for part in message["content"]:
                number += part["type"] == "image"
                text += f"<|image_{number}|>\n" if part["type"] == "image" else part["text"]
            text += "<|im_end|>\n"
        return text + ("<|im_start|>assistant\n" if add_generation_prompt else "")

    def __call__(self, text, images, padding, padding_side, add_special_tokens, return_tensors):
        image = self.image_token * self.tokens_per_image + self.begin
        expanded = [re.sub(r"<\|image_\d+\|>", lambda _: image, one) for one in text]
        options = {"padding": padding, "padding_side": padding_side, "return_tensors": return_tensors}
        return BatchFeature(self.tokenizer(expanded, add_special_tokens=add_special_tokens, **options))


class CutApart(NumberedImages):
    """One that has the pieces of a text read one by one."""

    def __call__(self, text, images, **options):
        pieces = [piece for one in text for piece in re.split(r"<\|image_\d+\|>", one)]
        return super().__call__(pieces, images, **options)


def test_a_processor_that_cuts_texts_apart_is_refused():
    with pytest.raises(ValueError, match="CutApart lets its tokenizer read 3 texts of 1 rows: it cuts them apart"):
        VisionCollator(CutApart())([make_row("Compare.", "Bags.", PICTURES)])


def test_a_fourth_family_with_numbered_images_fits():
    collator = VisionCollator(NumberedImages())
    pictured = make_row("Compare <|image_1|>.", "Bags.", PICTURES)
    pictured["messages"] += [user("Why?"), assistant("So.")]
    batch, prompts = collator([pictured, chat("Hello", "Hi.")]), collator.prompts([pictured])
    assert trained_text(collator, batch) == "Bags.<|im_end|>So.<|im_end|>"
    assert trained_text(collator, batch, 1) == "Hi.<|im_end|>"
    assert (batch["input_ids"] == collator.processor.image_token_id).sum(dim=1).tolist() == [10, 0]
    assert torch.equal(batch["input_ids"][0, : prompts["input_ids"].shape[1]], prompts["input_ids"][0])
