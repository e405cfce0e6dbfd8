"""A chat with a tuned model and, beside it, with its base: each goes on from its own answers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial

from markupsafe import Markup
from PIL import Image

from vlmhelpers.commands.chatting import Conversation
from vlmhelpers.commands.settings import Answering
from vlmhelpers.commands.tuned import Tuned
from vlmhelpers.common.display import thumbnail


@dataclass
class Turn:
    """A question with its images, and the answers by who gave them: base, tuned."""

    question: str
    images: Sequence[Image.Image]
    answers: dict[str, str] = field(default_factory=dict)

    @cached_property
    def thumbnails(self) -> Markup:
        """Of the images, made once: a chat is shown anew with each piece of an answer."""
        return Markup("").join(map(thumbnail, self.images))


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

        A base that was not asked goes on from the tuned model's answers. `write` is called whenever more of an answer
        is there. A turn that fails is taken back.
        """
        turn, before = Turn(question, images), {name: (side.turns, side.images) for name, side in self._sides.items()}
        self.turns.append(turn)
        try:
            for name in ("base", "tuned") if base else ("tuned",):
                self._sides[name].answering = answering or Answering()
                turn.answers[name] = self._sides[name].ask(question, images, partial(_grow, turn, name, write))
            if not base:
                added = self._sides["tuned"].turns[len(before["tuned"][0]) :]
                turns, shown = before["base"]
                self._sides["base"].turns, self._sides["base"].images = [*turns, *added], [*shown, *images]
        except BaseException:
            self.turns.remove(turn)
            for name, side in self._sides.items():
                side.turns, side.images = before[name]
            raise
        return turn

    def clear(self) -> None:
        """Begins anew."""
        self.turns.clear()
        for side in self._sides.values():
            side.clear()


def _grow(turn, side, write, piece):
    turn.answers[side] = turn.answers.get(side, "") + piece
    write()
