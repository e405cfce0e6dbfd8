"""A conversation with a tuned model and, beside it, with its base."""

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from PIL import Image

from vlmhelpers.data.schema import assistant, text_part, user

if TYPE_CHECKING:
    from vlmhelpers.commands import Answering, Tuned


@dataclass
class Turn:
    """A question with its images, and the answers by who gave them: tuned, base."""

    question: str
    images: list[Image.Image]
    answers: dict[str, str] = field(default_factory=dict)


class Conversation(list[Turn]):
    """The turns so far; each side goes on from its own answers."""

    def ask(
        self,
        tuned: "Tuned",
        question: str,
        images: Iterable[Image.Image],
        answering: "Answering",
        base: bool = False,
        write: Callable[[], object] = lambda: None,
    ) -> Turn:
        """Asks the tuned model and, with `base`, the base; `write` is called whenever more of an answer is there.

        A turn that fails is taken back.
        """
        turn = Turn(question, list(images))
        self.append(turn)
        try:
            for side in ("base", "tuned") if base else ("tuned",):
                self._answer(tuned, turn, side, answering, write)
        except BaseException:
            self.remove(turn)
            raise
        return turn

    def _answer(self, tuned, turn, side, answering, write):
        from vlmhelpers.inference import stream_conversation

        messages, images = self._messages(side, answering.system)
        turn.answers[side] = ""

        def grow(piece):
            turn.answers[side] += piece
            write()

        model = tuned.base_model() if side == "base" else nullcontext((tuned.model, tuned.processor))
        with model as (network, processor):
            turn.answers[side] = stream_conversation(
                network, processor, messages, images, write=grow, **answering.options
            )
        write()

    def _messages(self, side, system):
        messages = [{"role": "system", "content": [text_part(system)]}] if system else []
        images = []
        for turn in self:
            messages.append(user(turn.question, len(turn.images)))
            images += turn.images
            if turn is not self[-1]:
                messages.append(assistant(turn.answers.get(side) or turn.answers["tuned"]))
        return messages, images
