"""Chat templates of thinking models: reasoning is learned once, whole, and after the prompt that the model gets.

Some are read from TRL, which installs the templates of Qwen3-VL's relatives. The bases' tokenizer writes two
line breaks as two tokens; here they are one, as in Qwen's own, and the tags of a block are tokens as well.
"""

from pathlib import Path

import pytest
import torch
import trl
from datasets import Dataset
from tiny_families import build

from vlmhelpers.batches.collator import VisionCollator
from vlmhelpers.data.schema import FEATURES, assistant, make_row, text_part, user
from vlmhelpers.data.turns import one_answer_per_row
from vlmhelpers.evaluation.scoring import evaluate
from vlmhelpers.samples.drawing import sample_products

PICTURE = sample_products(1, "thinking", size=96)[0][1]
OURS = Path(__file__).parents[2] / "data/templates/qwen3_vl_thinking.jinja"
OF_TRL = Path(trl.__file__).parent / "chat_templates"
THINKING = [OURS, OF_TRL / "qwen3_5_think.jinja", OF_TRL / "qwen3_6.jinja"]
INSTRUCT = OF_TRL / "qwen3_vl.jinja"

# Chat templates in Qwen's spelling. One writes answers as they are, after a prompt that begins a block.
VERBATIM = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content[0].text }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
# And one writes an empty block before every answer, whatever it says.
BLOCK = "{% if m.role == 'assistant' %}<think>\n\n</think>\n\n{% endif %}"
PREFIXING = VERBATIM.replace("{{ m.content", BLOCK + "{{ m.content")


@pytest.fixture(scope="module")
def processor():
    processor = build("qwen3-vl")[1]
    processor.tokenizer.add_tokens(["<think>", "</think>", "\n\n"])
    assert len(processor.tokenizer("\n\n")["input_ids"]) == 1
    return processor


@pytest.fixture
def with_template(processor):
    """Makes a collator whose processor has another chat template: a text, or a file of one."""

    def make(template, **options):
        processor.chat_template = template.read_text() if isinstance(template, Path) else template
        return VisionCollator(processor, **options)

    return make


def chat(*texts):
    """A row whose texts are by turns the user's and the assistant's."""
    return {"messages": [assistant(t) if i % 2 else user(t) for i, t in enumerate(texts)], "images": [], "row": 8}


def trained_text(collator, row):
    labels = collator([row])["labels"][0]
    return collator.processor.tokenizer.decode(labels[labels != -100])


def assert_prompt_begins(collator, row):
    """The prompt's tokens begin the training sequence, and learning starts right after them."""
    batch, prompt = collator([row]), collator.prompts([row])["input_ids"][0]
    assert torch.equal(batch["input_ids"][0, : len(prompt)], prompt)
    if collator.train_on != "all":
        assert (batch["labels"][0] != -100).int().argmax() == len(prompt)


def test_our_template_writes_this(with_template):
    template = with_template(OURS).template
    picture = {"role": "user", "content": [{"type": "image"}, text_part("What?")]}
    thought = "<think>\nI see cloth.\n</think>\n\nA bag."
    talk = [{"role": "system", "content": "Be brief."}, picture, assistant(thought), user("Sure?")]
    before = (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>What?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert template.text(talk[:2], prompt=True) == f"{before}<think>\n"
    assert template.text(talk[:3]) == f"{before}{thought}<|im_end|>\n"
    later = f"{before}A bag.<|im_end|>\n<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\n<think>\n"
    assert template.text(talk, prompt=True) == later
    assert template.text([*talk, assistant("Yes.")]) == f"{later}\n</think>\n\nYes.<|im_end|>\n"


ANSWERS = {  # as the data have it: reasoning, what a thinking model learns to write
    "A bag.": "</think>\n\nA bag.",
    "<think>\n\n</think>\n\nA bag.": "</think>\n\nA bag.",
    "<think>I look.</think>A bag.": "I look.\n</think>\n\nA bag.",
    "<think>\nI look.\n\nA bag?\n</think>\n\nA bag.": "I look.\n\nA bag?\n</think>\n\nA bag.",
    "I look.\n</think>\n\nA bag.": "I look.\n</think>\n\nA bag.",
}


@pytest.mark.parametrize("train_on", ["assistant", "last", "all"])
@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("template", THINKING, ids=lambda path: path.stem)
def test_a_thinking_template_writes_reasoning_once_after_the_whole_prompt(with_template, template, answer, train_on):
    collator = with_template(template, train_on=train_on)
    for row in (chat("What?", answer), make_row("What?", answer, [PICTURE])):
        text = trained_text(collator, row)
        prompt = "<|im_start|>assistant\n<think>\n"
        assert text.endswith(prompt * (train_on == "all") + ANSWERS[answer] + "<|im_end|>" + "\n" * (train_on == "all"))
        assert train_on == "all" or text == ANSWERS[answer] + "<|im_end|>"
        assert_prompt_begins(collator, row)


@pytest.mark.parametrize("answer", ANSWERS)
def test_an_instruct_template_writes_reasoning_as_the_data_have_it(with_template, answer):
    collator = with_template(INSTRUCT)
    assert trained_text(collator, chat("What?", answer)) == answer + "<|im_end|>"
    assert_prompt_begins(collator, chat("What?", answer))
    assert trained_text(collator, chat("What?", answer, "Sure?", "Yes.")) == f"{answer}<|im_end|>Yes.<|im_end|>"


THOUGHT = "<think>\nI look.\n</think>\n\nA bag."


@pytest.mark.parametrize("train_on", ["assistant", "all"])
@pytest.mark.parametrize(
    "answer, problem",
    [
        (THOUGHT, "loses its reasoning"),
        ("I look.</think>A bag.", "loses its reasoning"),
        ("<think>A bag</think>A bag.", "loses its reasoning"),
        ("<think>\n\n</think>\n\nA bag.", "is not written after the prompt"),
        ("A bag.", "is not written after the prompt"),
    ],
)
@pytest.mark.parametrize("template", THINKING, ids=lambda path: path.stem)
def test_an_earlier_answer_that_a_thinking_template_rewrites_is_refused(
    with_template, template, answer, problem, train_on
):
    row = chat("What?", answer, "Sure?", "<think>\nYes?\n</think>\n\nYes.")
    remedy = r'train_on="last"; to learn every answer, apply one_answer_per_row\(dataset\)'
    with pytest.raises(ValueError, match=f"^row 8: the answer of turn 2 {problem} .*: pass {remedy}"):
        with_template(template, train_on=train_on)([row])


@pytest.mark.parametrize("template", THINKING, ids=lambda path: path.stem)
def test_one_answer_per_row_teaches_every_answer_with_its_reasoning(with_template, template):
    row = chat("What?", THOUGHT, "Sure?", "<think>\nOr not?\n</think>\n\nYes.", "Thanks", "Welcome.")
    del row["row"]
    rows = one_answer_per_row(Dataset.from_list([row], features=FEATURES))
    collator = with_template(template, train_on="last")
    learned = ["I look.\n</think>\n\nA bag.", "Or not?\n</think>\n\nYes.", "</think>\n\nWelcome."]
    assert [trained_text(collator, row) for row in rows] == [f"{text}<|im_end|>" for text in learned]
    for row in rows:
        assert_prompt_begins(collator, row)


@pytest.mark.parametrize(
    "template, answer, message",
    [
        (VERBATIM, "A bag.", "is not written after the prompt .* another chat_template"),
        (VERBATIM, "<think>I look.</think>A bag.", "is not written after the prompt .* another chat_template"),
        (PREFIXING, THOUGHT, "gets a second <think> block .*: leave its own out"),
        (OURS, "<think>a</think>b<think>c</think>d", "loses text .*: write one <think>...</think> block"),
        (OURS, "Hm. <think>a</think>b", "loses its reasoning .*: write one <think>...</think> block"),
    ],
)
def test_a_last_answer_that_a_template_does_not_write_whole_and_once_is_refused(
    with_template, template, answer, message
):
    with pytest.raises(ValueError, match=f"^row 8: the answer of turn 2 {message}"):
        with_template(template, train_on="last")([chat("What?", answer)])


def test_answers_that_fit_are_learned_by_the_same_templates(with_template):
    collator = with_template(VERBATIM)
    assert trained_text(collator, chat("What?", THOUGHT)) == "I look.\n</think>\n\nA bag.<|im_end|>"
    assert trained_text(with_template(PREFIXING), chat("What?", "A bag.")) == "</think>\n\nA bag.<|im_end|>"


def test_an_earlier_block_whose_start_is_one_token_with_the_prompt_is_refused(with_template):
    """In the prompt of the next answer it stands as it is, so it cannot lose its line break."""
    row = chat("What?", "A bag.", "Sure?", "Yes.")
    with pytest.raises(ValueError, match="^row 8: the tokenizer joins the end of the prompt"):
        with_template(PREFIXING)([row])
    collator = with_template(PREFIXING, train_on="last")
    assert trained_text(collator, row) == "</think>\n\nYes.<|im_end|>"
    assert_prompt_begins(collator, row)


# As Llama 3.2's own template does: the prompt of an answer before the first image has a date, the whole row has none.
DATE = (
    "{% if 'image' not in messages | map(attribute='content') | sum(start=[]) | map(attribute='type') %}"
    "<|im_start|>system\nToday<|im_end|>\n{% endif %}"
)


@pytest.mark.parametrize("answer", ANSWERS)
def test_a_thinking_template_that_changes_its_beginning_once_an_image_appears(with_template, answer):
    row = chat("What?", answer)
    row["messages"].append(user("And this?", 1))  # the template alone: a row without an answer to that is refused
    template = with_template(DATE + OURS.read_text().replace("loop.index0 > asked.last", "true")).template
    text, ((start, end),) = template.to_train(row["messages"])
    assert text[start:end] == ANSWERS[answer] + "<|im_end|>"


def test_the_prompt_of_another_answer_is_not_taken_for_its_own(with_template):
    row = chat("What?", "A bag.", "Sure?", "Yes.")
    row["messages"] += [user("And this?", 1), assistant("A cap.")]
    collator = with_template(DATE + OURS.read_text().replace("loop.index0 > asked.last", "loop.index0 == 1"))
    with pytest.raises(ValueError, match="^row 8: the answer of turn 4 is not written after the prompt"):
        collator([row | {"images": [PICTURE]}])


@pytest.mark.parametrize("name", ["qwen3.jinja", "qwen3_instruct_2507.jinja"])
def test_templates_for_text_alone_are_refused(with_template, name):
    with pytest.raises(ValueError, match="^row 8: .*is it for text alone"):
        with_template(OF_TRL / name)([chat("What?", "A bag.")])


def test_scores_compare_what_follows_the_reasoning(rows_of):
    wanted = "Color: Red, Price: $20"
    references = [wanted, f"<think>\nI look.\n</think>\n\n{wanted}", wanted, f"<think>\n\n</think>\n\n{wanted}", wanted]
    answers = [
        f"Color: Blue, I think.\n</think>\n\n{wanted}\n",
        wanted,
        "<think>\nColor: Red, Price: $20",  # ran out of tokens before it answered
        "</think>Color: Red, Price: $30",
        f" {wanted}",
    ]
    found = evaluate(answers, rows_of([("?", reference, []) for reference in references]))
    assert found.hits == (True, True, False, False, True)
    assert (found.scores["Color"].value, found.scores["Price"].value) == (0.8, 0.6)
