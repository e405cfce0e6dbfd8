"""A conversation with a tuned model or its base, turn by turn."""

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from pathlib import Path

from PIL import Image

from vlmhelpers.commands.settings import Answering
from vlmhelpers.commands.tuned import Tuned
from vlmhelpers.common.image_workers import open_apart
from vlmhelpers.data.schema import assistant, text_part, user
from vlmhelpers.inference.generation import stream_conversation


class Conversation:
    """The turns of a chat so far, with their images. `base`: the untuned model answers."""

    def __init__(self, tuned: Tuned, answering: Answering | None = None, base: bool = False):
        self.tuned, self.answering, self.base = tuned, answering or Answering(), base
        self.turns, self.images = [], []

    def ask(
        self, prompt: str, images: Iterable[Image.Image | str | Path] = (), write: Callable[[str], object] | None = None
    ) -> str:
        """The answer to a prompt after `images`, which is written while it comes; both become turns of the chat.

        `write`: as of `stream_answer`. Where an error is raised, the chat stays as it was: UnusableImage, ValueError.
        """
        images = [image if isinstance(image, Image.Image) else open_apart(image) for image in images]
        turns, shown = [*self.turns, user(prompt, len(images))], [*self.images, *images]
        system = self.answering.system
        messages = [{"role": "system", "content": [text_part(system)]}, *turns] if system else turns
        model = self.tuned.base_model() if self.base else nullcontext((self.tuned.model, self.tuned.processor))
        with model as loaded:
            answer = stream_conversation(*loaded, messages, shown, write=write, **self.answering.options)
        self.turns, self.images = [*turns, assistant(answer)], shown
        return answer

    def clear(self) -> None:
        """Forgets all turns and images."""
        self.turns, self.images = [], []
