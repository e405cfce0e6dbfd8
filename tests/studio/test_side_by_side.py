"""A chat with two sides, each of which goes on from its own answers."""

import pytest
from PIL import Image

from vlmhelpers.commands.chatting import Conversation
from vlmhelpers.data.schema import assistant, message_text, user
from vlmhelpers.studio.talk import Talk


@pytest.fixture
def talk(monkeypatch):
    """A Talk whose models answer with their name and the number of turns that they have seen, or fail for "fail"."""

    def ask(self, prompt, images=(), write=None):
        if prompt == "fail" and not self.base:
            raise ValueError("out of tokens")
        answer = f"{'base' if self.base else 'tuned'} after {len(self.turns)}"
        write(answer)
        self.turns = [*self.turns, user(prompt, len(images)), assistant(answer)]
        self.images = [*self.images, *images]
        return answer

    monkeypatch.setattr(Conversation, "ask", ask)
    return Talk(tuned=None)


def test_both_sides_answer_and_go_on(talk):
    turn = talk.ask("one", [Image.new("RGB", (8, 8))], base=True)
    assert turn.answers == {"base": "base after 0", "tuned": "tuned after 0"}
    assert turn.thumbnails is turn.thumbnails and "<img" in turn.thumbnails
    assert talk.ask("two", base=True).answers == {"base": "base after 2", "tuned": "tuned after 2"}


def test_a_base_that_was_not_asked_knows_what_was_said(talk):
    image = Image.new("RGB", (8, 8))
    talk.ask("one", [image])
    base = talk._sides["base"]
    assert [message_text(turn) for turn in base.turns] == ["one", "tuned after 0"] and base.images == [image]
    assert talk.ask("two", base=True).answers["base"] == "base after 2"


def test_a_turn_that_fails_is_taken_back_on_both_sides(talk):
    talk.ask("one", base=True)
    with pytest.raises(ValueError, match="out of tokens"):
        talk.ask("fail", base=True)
    assert [turn.question for turn in talk.turns] == ["one"]
    assert talk.ask("two", base=True).answers == {"base": "base after 2", "tuned": "tuned after 2"}
    talk.clear()
    assert talk.turns == [] and talk.ask("three").answers == {"tuned": "tuned after 0"}
