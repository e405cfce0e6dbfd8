"""Rewards on right, wrong, malformed and empty answers, as TRL calls them, and what their errors name."""

from types import SimpleNamespace

import pytest
from transformers import TrainerState
from trl import GRPOTrainer, RLOOTrainer

from vlmhelpers.training.rewards import (
    as_reward,
    combine,
    exact_match,
    json_fields,
    length_within,
    matches,
    number_within,
    parse_reward,
    parse_rewards,
)

HAT = '{"name": "red hat",\n "price": 20.0, "sizes": ["S", "M"]}'


def said(*texts):
    """Completions as TRL makes them for conversations."""
    return [[{"role": "assistant", "content": text}] for text in texts]


def scored(reward, text, answer=""):
    """The reward of one answer, which is the same in every form of a completion."""
    parts = [{"type": "image", "text": None}, {"type": "text", "text": text}]
    completions = [text, *said(text, parts)]
    first, *others = reward(prompts=[""] * 3, completions=completions, answer=[answer] * 3)
    assert others == [first, first] and isinstance(first, float)
    return first


@pytest.mark.parametrize(
    "text, value",
    [("The red  hat.", 1), ("<think>Blue? No.</think>\nRed hat", 1), ("<think>red hat", 0), ("blue hat", 0), ("", 0)],
)
def test_exact_match(text, value):
    assert scored(exact_match, text, "<think>It is red.</think> a red hat") == value


@pytest.mark.parametrize(
    "text, value",
    [
        (HAT, 1),
        (f"<think>A hat.</think>```json\n{HAT}\n```", 1),
        (
            '{"sizes": ["S", "M"], "price": 20, "name": "red hat", "color": "red"}',
            1,
        ),  # evaluate, too, takes 20 for 20.0
        ('{"name": "red hat", "price": 21}', 1 / 3),
        ("{}", 0),
        (f"Here it is: {HAT}", 0),
        (f"[{HAT}]", 0),
        (HAT[:-1], 0),
        ('{"name": ' + "[" * 100_000, 0),
        ("name: red hat", 0),
        ("", 0),
    ],
)
def test_json_fields(text, value):
    assert scored(json_fields(), text, HAT) == pytest.approx(value)


def test_a_part_of_the_reward_is_for_any_json_object():
    reward = json_fields(parsed=0.1)
    assert [scored(reward, text, HAT) for text in (HAT, "{}", "red hat")] == [1, 0.1, 0]
    with pytest.raises(ValueError, match="part for parsing is 1: choose"):
        json_fields(parsed=1)


@pytest.mark.parametrize(
    "text, answer, value",
    [
        ("It was $25 and is $19.50 now.", "$20", 1),
        ("20.5", "20", 1),  # the end itself
        ("0.57", "1.07", 1),  # where floating point gives a little more than 0.5
        ("20.51", "20", 0),
        ("$2,150.", "2150", 1),
        ("−3", "-3", 1),  # the sign minus of Unicode
        ("-$3", "3", 0),
        ("10-20", "20", 1),  # a range, not -20
        (".25", "0", 1),
        ("2e3", "2000", 1),
        ("1,2345", "1.2345", 1),
        ("1.299,00 €", "1299", 1),
        ("12,50", "12.5", 1),
        ("3/4", "1/4", 1),
        ("3/4", "7/4", 0),
        ("on 2026-11-30", "30", 0),
        ("20 <think>", "20", 1),
        ("<think>20</think>", "20", 0),
        ("9" * 400, "20", 0),  # more than a float holds
        ("twenty", "20", 0),
        ("", "20", 0),
    ],
)
def test_number_within(text, answer, value):
    assert scored(number_within(0.5), text, answer) == value


def test_number_within_a_share_of_the_expected_number():
    reward = number_within(0.05, relative=True)
    assert [scored(reward, text, "-$200") for text in ("-190", "-210.00", "-189", "190")] == [1, 1, 0, 0]
    with pytest.raises(ValueError, match="tolerance is nan"):
        number_within(float("nan"))


def test_matches_the_whole_answer():
    reward = matches(r"An? \w+\.")
    texts = ("A hat.", "<think>?</think> An egg.", "A hat. It is red.", "It is a hat.", "")
    assert [scored(reward, text) for text in texts] == [1, 1, 0, 0, 0]
    with pytest.raises(ValueError, match=r"'\(' is no regular expression: missing \)"):
        matches("(")


def test_length_within_words():
    texts = ("A red hat.", "<think>A hat, I think.</think> A  hat", "Hat", "A big red hat.", "", "<think>So long")
    assert [scored(length_within(3), text) for text in texts] == [1, 1, 1, 0, 0, 0]
    with pytest.raises(ValueError, match="0 words: choose a number from 1 up"):
        length_within(0)


def test_a_scorer_gets_its_samples_values_and_its_completion():
    seen = []

    @as_reward
    def names_price(text, price, completion, factor=2.0, **others):
        seen.append((text, completion, others))
        return None if price is None else factor * (price in text)

    completions = [*said("<think>So.</think> $20"), "$5"]
    assert names_price(completions, price=["20", None], images=[["a"], []], log_extra=print) == [2.0, None]
    assert names_price.__name__ == "names_price"
    assert seen == [
        ("$20", completions[0], {"images": ["a"], "log_extra": print}),
        ("$5", "$5", {"images": [], "log_extra": print}),
    ]


def test_the_last_message_is_the_answer_and_a_call_of_a_tool_is_none():
    call = {"role": "assistant", "content": None}
    completions = [[call, {"role": "tool", "content": "20"}, *said("hat")[0]], [call]]
    assert exact_match(completions, answer=["hat", "hat"]) == [1, 0]


def test_an_error_names_the_reward_the_row_and_the_answer():
    reward = as_reward(lambda text, prices, **_: prices["price"], "price")
    with pytest.raises(ValueError) as error:
        reward(said("$20", "the hat \x1b" * 90), prices=[{"price": 1}, {}], row=[16, 17])
    shown = ("the hat \\x1b" * 90)[: 80 + 3 * 8]  # 80 characters, of which 8 are escaped
    assert str(error.value) == f"reward price, row 17 ('{shown}…'): KeyError: 'price'"
    assert isinstance(error.value.__cause__, KeyError)
    with pytest.raises(ValueError, match=r"reward price, sample 1 of the batch \(counted from 0\) \('b'\): KeyError"):
        reward(["a", "b"], prices=[{"price": 1}, {}])
    with pytest.raises(ValueError, match=r"reward nan, row 3 \('a'\): ValueError: the reward is nan"):
        as_reward(lambda text, **_: float("nan"), "nan")(["a"], row=[3])


@pytest.mark.parametrize(
    "reward, why", [(number_within(1), "no number: 'hat'"), (json_fields(), "no JSON object .*: 'hat'")]
)
def test_an_expected_answer_that_can_never_be_met_is_an_error(reward, why):
    with pytest.raises(
        ValueError, match=rf"{reward.__name__}, row 4 \('20'\): ValueError: the expected answer .*{why}"
    ):
        reward(["20"], answer=["hat"], row=[4])


def test_a_missing_column_is_an_error_that_names_those_there():
    with pytest.raises(
        ValueError, match="exact_match needs a column 'answer'. Those there are: completion, label, prompt."
    ):
        exact_match(prompts=["?"], completions=["hat"], label=[True], trainer_state=TrainerState())
    with pytest.raises(ValueError, match="exact_match: 2 values of 'answer' for 1 completions"):
        exact_match(["hat"], answer=["hat", "cap"])


def test_combine_is_a_weighted_sum_to_which_none_adds_nothing():
    never = as_reward(lambda text, **_: None, "never")
    reward = combine([exact_match, matches("hat|cap"), never], [1, -0.25, 5])
    assert reward(said("hat", "cap", "egg"), answer=["hat"] * 3) == [0.75, -0.25, 0]
    assert reward.__name__ == "1*exact_match + -0.25*matches:hat|cap + 5*never"
    only = combine([never, never], [1, 1], name="nothing")
    assert (only(["hat"]), only.__name__) == ([None], "nothing")
    with pytest.raises(ValueError, match="1 weights for 2 rewards"):
        combine([never, never], [1])


@pytest.mark.parametrize(
    "text, answers, values",  # where 20 is expected
    [
        ("exact_match", ("20.", "21"), [1, 0]),
        ("length_within:2", ("20 dollars", "It is 20."), [1, 0]),
        (r"matches:\d*:?2*0?", ("20", "a 20"), [1, 0]),  # a pattern may hold what parts a text
        ("number_within:0.5", ("20.5", "21"), [1, 0]),
        ("number_within:5%", ("21", "22"), [1, 0]),
        ("0.2*exact_match", ("20", "21"), [0.2, 0]),
        ("-1*matches:About.*", ("20", "About 20"), [0, -1]),
    ],
)
def test_a_text_names_a_reward_which_has_it_as_its_name(text, answers, values):
    reward = parse_reward(text)
    assert reward.__name__ == text
    assert reward(said(*answers), answer=["20", "20"]) == values


@pytest.mark.parametrize(
    "text, names",
    [
        ("exact_match", ["exact_match"]),
        (
            r"exact_match; 0.1*matches:a\;b|\d;length_within:2 ;",
            ["exact_match", r"0.1*matches:a\;b|\d", "length_within:2"],
        ),
        (r"matches:a\\;exact_match", [r"matches:a\\", "exact_match"]),  # a backslash at the end of a pattern
        ("", []),
        (" ; ", []),
    ],
)
def test_a_text_names_several_rewards(text, names):
    rewards = parse_rewards(text)
    assert [reward.__name__ for reward in rewards] == names
    if len(rewards) == 3:
        assert rewards[1](said("a;b", "7", "b|7")) == [0.1, 0.1, 0]


def test_a_semicolon_in_a_pattern_needs_a_backslash():
    with pytest.raises(ValueError, match=r"no reward 'b'.* inside of a pattern is written \\;"):
        parse_rewards("matches:a;b")


def test_a_text_names_json_fields_with_and_without_its_part():
    for text, value in ("json_fields", 0), ("json_fields:0.1", 0.1):
        assert (parse_reward(text).__name__, scored(parse_reward(text), "{}", HAT)) == (text, value)


@pytest.mark.parametrize(
    "text, message",
    [
        (
            "exactmatch",
            "no reward 'exactmatch'. Did you mean 'exact_match'. There are: exact_match, json_fields, length_",
        ),
        ("", "no reward ''. Did you mean"),
        ("2*mathces:a", "no reward 'mathces'. Did you mean 'matches'"),
        ("exact_match:20", "a setting too many, .* as in exact_match"),
        ("matches", r"none where one belongs. Write it as in matches:An"),
        ("matches:(", r"'\(' is no regular expression: missing \)"),
        ("number_within:few", "could not convert .*'few'. Write it as in number_within:0.5 or number_within:5%"),
        ("length_within:2.5", "invalid literal .*'2.5'. Write it as in length_within:20"),
        ("json_fields:2", "choose one from 0 to below 1"),
    ],
)
def test_a_text_that_names_no_reward_is_an_error(text, message):
    with pytest.raises(ValueError, match=message):
        parse_reward(text)


@pytest.mark.parametrize("trainer", [GRPOTrainer, RLOOTrainer])
def test_trls_trainers_call_them(trainer):
    rewards = [exact_match, parse_reward("0.5*length_within:1"), as_reward(lambda text, **_: None, "never")]
    itself = SimpleNamespace(
        accelerator=SimpleNamespace(device="cpu", is_main_process=False),
        args=SimpleNamespace(report_to=[]),
        reward_funcs=rewards,
        reward_func_names=[reward.__name__ for reward in rewards],
        reward_processing_classes=[None] * len(rewards),
        state=TrainerState(),
        environments=None,
        _log_completion_extra=None,
        _log_metric=None,
    )
    prompts = [[{"role": "user", "content": [{"type": "text", "text": "What is it?"}]}]] * 2
    inputs = [{"prompt": prompt, "answer": "hat", "images": [], "row": 7} for prompt in prompts]
    values = trainer._calculate_rewards(itself, inputs, prompts, said("a hat", "cap"), [[1, 2], [3]])
    assert values[:, :2].tolist() == [[1, 0], [0, 0.5]] and values[:, 2].isnan().all()
