"""A chat with a tuned model and, beside it, with its base: each goes on from its own answers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from PIL import Image

from vlmhelpers.commands.chatting import Conversation
from vlmhelpers.commands.settings import Answering
from vlmhelpers.commands.tuned import Tuned


@dataclass
class Turn:
    """A question with its images, and the answers by who gave them: base, tuned."""

    question: str
    images: Sequence[Image.Image]
    answers: dict[str, str] = field(default_factory=dict)


class Talk:
    """The `turns` so far."""

    def __init__(self, tuned: Tuned):
        self.turns = []
        self._sides = {"base": Conversation(tuned, base=True), "tuned": Conversation(tuned)}

    def ask(
        self,
        question: str,
        images: Sequence[Image.Image] = (),
        answering: Answering | None = None,
        base: bool = False,
        write: Callable[[], object] = lambda: None,
    ) -> Turn:
        """The next turn, answered by the tuned model and, with `base`, by the base before it.

        `write` is called whenever more of an answer is there. A turn that fails is taken back.
        """
        turn = Turn(question, images)
        self.turns.append(turn)
        try:
            for side in ("base", "tuned") if base else ("tuned",):
                self._sides[side].answering = answering or Answering()
                turn.answers[side] = self._sides[side].ask(question, images, partial(_grow, turn, side, write))
        except BaseException:
            self.turns.remove(turn)
            raise
        return turn

    def clear(self) -> None:
        """Begins anew."""
        self.turns.clear()
        for conversation in self._sides.values():
            conversation.clear()


def _grow(turn, side, write, piece):
    turn.answers[side] = turn.answers.get(side, "") + piece
    write()
