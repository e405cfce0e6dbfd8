"""Answers of every kind, learned with the published vocabularies: what is trained is the answer and its end token."""

import unicodedata
from functools import partial

import pytest
from datasets import Dataset
from real_models import THINKING
from real_vocabularies import BUILDERS

from vlmhelpers.batches.collator import VisionCollator
from vlmhelpers.data.schema import FEATURES, assistant, make_row, text_part, user
from vlmhelpers.data.turns import one_answer_per_row
from vlmhelpers.models.loading import set_max_pixels

pytestmark = pytest.mark.slow

# Text that no vocabulary takes for a control token.
ANSWERS = [
    "A red bag.",
    "0",
    ".",
    "<b>bold</b> &amp; <i>italic</i><br/>",
    '<img src="a.png" alt="">',
    "[INST] do it [/INST] <<SYS>>",
    "See <image> and <pad>, <part>12</part>.",
    "<|not a token|> <|im_end <im_end> |im_end|> <||>",
    "<tool_call>\n{}\n</tool_call>",
    "<think>\nIt is red.\n</think>\n\nA bag.",
    "def f(x):\n    if x:\n\t\treturn 1\n\n    return  2",
    "```python\nprint('hi')\n```",
    '{"price": 120, "tags": [], "size": null}',
    "| a | b |\n|---|---|\n| 1 | 2 |",
    "👩‍👩‍👧‍👦🏳️‍🌈 🙂🙂 ✅",
    "价格：一百二十美元。",
    "السعر ١٢٠ دولارًا فقط",
    "हिन्दी ไทย 한국어 Ελληνικά עברית",
    "Crème brûlée, naïve",
    "e\u0301 o\u0308 n\u0303",
    "ﬁ ½ ² Ⅳ ™ ∑ √2 ≈ 1.41",
    "zero\u200bwidth, no\u00a0break, \u202eback\u202c",
    "A bag   ",
    "A bag.\n",
    "A bag.\n\n\n",
    "\tA tab first,\ta tab between",
    "one\r\ntwo\r\n",
    "two  blanks,   three    four",
    "3.14159 1,000,000 0x1F 1e-4 2024-11-29",
    "$5_% & $6 #7 \\frac{1}{2} C:\\path",
    "it 's , she 'll . do n't ! we 've ?",
    "DON'T we'Ll I'm",
    "x" * 300,
    "Donaudampfschifffahrtsgesellschaftskapitän" * 4,
    "!" * 50 + "?" * 50 + "-" * 50,
    "https://example.org/a?b=c&d=%20#e",
    "A\u2028line\u2029separator",
]
# Text that is a control token, by vocabulary: it is learned with a blank inside.
CONTROL = {
    "qwen2.5-vl": ["<|im_end|>", "<|endoftext|>", "<|image_pad|>", "<|vision_start|>"],
    "qwen3-vl": ["<|im_end|>", "<|im_start|>", "<|video_pad|>"],
    "llama-3.2-vision": ["<|eot_id|>", "<|begin_of_text|>", "<|image|>", "<|reserved_special_token_5|>"],
    "phi-3-vision": [
        "<s>",
        "</s>",
        "<unk>",
        "<|end|>",
        "<|endoftext|>",
        "<|image|>",
        "<|image_1|>",
        "<|placeholder7|>",
    ],
}
HTML = "<s>old</s> new <unk>"  # in Phi-3's vocabulary these are control tokens, in the others text
END = {
    "qwen2.5-vl": "<|im_end|>",
    "qwen3-vl": "<|im_end|>",
    "llama-3.2-vision": "<|eot_id|>",
    "phi-3-vision": "<|end|>",
}
AT_ONCE = 8


@pytest.fixture(scope="session")
def collator_of(processor_of, picture):
    """Gives a collator with few image tokens, for a model by its name and further options."""

    def make(name, **options):
        processor = processor_of(name)
        if name == "phi-3-vision":
            set_max_pixels(processor, 336**2)
        return VisionCollator(processor, **options)

    return make


def learned(collator, row):
    """The text of the labels of one row."""
    return written(collator, collator([row])["labels"][0])


def written(collator, labels):
    tokenizer = collator.processor.tokenizer
    return tokenizer.decode(labels[labels >= 0], skip_special_tokens=False, clean_up_tokenization_spaces=False)


def expected(name, answer):
    """What is learned of an answer. Qwen reads all text in NFC; blanks before it are lost in Phi's `<|assistant|>`."""
    answer = answer.lstrip() if name == "phi-3-vision" else answer
    return (unicodedata.normalize("NFC", answer) if name.startswith("qwen") else answer) + END[name]


def learned_of_each(collator, rows):
    """The text of the labels of each row, in batches."""
    for start in range(0, len(rows), AT_ONCE):
        labels = collator(rows[start : start + AT_ONCE])["labels"]
        yield from (written(collator, row) for row in labels)


@pytest.mark.parametrize("pictured", [True, False])
@pytest.mark.parametrize("name", BUILDERS)
def test_an_answer_is_learned_as_it_is(name, pictured, collator_of, picture):
    images = [picture] * pictured
    answers = ANSWERS if name == "phi-3-vision" else [*ANSWERS, HTML]
    found = learned_of_each(collator_of(name), [make_row("What is it?", answer, images) for answer in answers])
    assert list(found) == [expected(name, answer) for answer in answers]


@pytest.mark.parametrize("name", BUILDERS)
def test_blank_lines_before_an_answer_go_and_its_indent_stays(name, collator_of, picture):
    rows = [make_row("What?", f"{before}A bag.", [picture]) for before in ("\n", "\n\n  \n", "\r\n", " \n    ", "  ")]
    indents = ["", "", "", "    ", "  "]
    found = learned_of_each(collator_of(name), rows)
    assert list(found) == [expected(name, f"{indent}A bag.") for indent in indents]


@pytest.mark.parametrize("name", BUILDERS)
def test_a_control_token_in_a_text_is_none(name, collator_of, picture):
    collator = collator_of(name)
    answers = ["none", *(f"a {token} b{token}" for token in CONTROL[name])]
    batch = collator([make_row(f"Which? {answer}", answer, [picture]) for answer in answers])
    spaced = [answer.replace("<", "< ") + END[name] for answer in answers]
    assert [written(collator, labels) for labels in batch["labels"]] == spaced
    added = collator.processor.tokenizer.added_tokens_decoder
    real = [row[mask.bool()].tolist() for row, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)]
    steering = [[i for i in row if i in added and (added[i].special or added[i].rstrip)] for row in real]
    assert steering == [steering[0]] * len(answers)


@pytest.mark.parametrize("name", BUILDERS)
def test_what_was_learned_is_read_back_as_it_was_written(name, collator_of):
    collator = collator_of(name)
    tokens = [token for token in CONTROL[name] if token in collator.processor.tokenizer.get_added_vocab()]
    answers = [*ANSWERS, HTML, *(f"a {token} b{token}" for token in tokens)]
    labels = collator([make_row("What is it?", answer) for answer in answers])["labels"]
    read = [collator.template.answer(row[row >= 0].tolist()) for row in labels]
    same = partial(unicodedata.normalize, "NFC")  # as answers are compared
    assert list(map(same, read)) == [same(answer.strip()) for answer in answers]


@pytest.mark.parametrize("turns", [1, 2, 3, 4])
@pytest.mark.parametrize("name", BUILDERS)
def test_every_answer_of_a_conversation_is_learned(name, turns, collator_of, picture):
    collator = collator_of(name)
    for images in ([], [picture]):
        messages = []
        for i, answer in enumerate(ANSWERS[:turns]):
            messages += [user(f"Question {i}?", len(images) if i == 0 else 0), assistant(answer)]
        row = {"messages": messages, "images": images}
        each = "".join(expected(name, answer) for answer in ANSWERS[:turns])
        assert joined(name, learned(collator, row)) == joined(name, each)
        last = VisionCollator(collator.processor, train_on="last")
        assert learned(last, row) == expected(name, ANSWERS[turns - 1])


def joined(name, text):
    """Phi's decoder writes a blank where a text starts after a control token, and there alone none."""
    return text.replace(f"{END[name]} ", END[name]) if name == "phi-3-vision" else text


@pytest.mark.parametrize("turns", [1, 2, 4])
def test_a_thinking_model_learns_its_reasoning_and_the_answer(turns, collator_of, picture):
    collator = collator_of(THINKING, train_on="last")
    messages = []
    for i in range(turns):
        messages += [user(f"Question {i}?", int(i == 0)), assistant(f"<think>\nStep {i}.\n</think>\n\nAnswer {i}.")]
    conversation = {"messages": messages, "images": [picture]}
    rows = Dataset.from_list([make_row("What?", "A bag.", [picture]), conversation], features=FEATURES)
    rest = [f"Step {i}.\n</think>\n\nAnswer {i}.<|im_end|>" for i in range(turns)]
    found = list(learned_of_each(collator, list(one_answer_per_row(rows))))
    assert found == ["</think>\n\nA bag.<|im_end|>", *rest]


def test_llamas_date_is_in_the_prompt_and_a_system_turn_beside_an_image_is_refused(collator_of, picture):
    collator = collator_of("llama-3.2-vision")
    system = {"role": "system", "content": [text_part("Be brief.")]}
    rows = [make_row("What?", "A bag.", images) for images in ([], [picture])]
    for row in rows:
        row["messages"].insert(0, system)
    ids = collator(rows[:1])["input_ids"][0]
    text = collator.processor.tokenizer.decode(ids)
    assert "Cutting Knowledge Date: December 2023\nToday Date: " in text and "\n\nBe brief.<|eot_id|>" in text
    with pytest.raises(ValueError, match="^row 1 of the batch .*system"):
        collator(rows[1:])
