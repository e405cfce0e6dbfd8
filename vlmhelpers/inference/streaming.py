"""One answer, shown while the model writes it: in a notebook, in a terminal, or wherever `write` puts it."""

from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from PIL import Image
from transformers import PreTrainedModel, ProcessorMixin
from transformers.generation.streamers import BaseStreamer

from vlmhelpers.batches.collator import VisionCollator
from vlmhelpers.common.display import in_notebook
from vlmhelpers.common.images import open_image
from vlmhelpers.data.schema import user
from vlmhelpers.inference.generation import decoding
from vlmhelpers.models.backends import answering

_UNFINISHED = "\ufffd"  # stands for a character of which a token has written only some bytes


def stream_answer(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    prompt: str,
    images: Image.Image | str | Path | Iterable[Image.Image | str | Path] = (),
    max_new_tokens: int = 256,
    write: Callable[[str], object] | None = None,
    **options: object,
) -> str:
    """Shows the answer to one prompt while it comes, and returns it whole; the same that `generate` gives.

    `images`: none, one or several PIL images or paths of files, which stand before the text. `write` takes each piece
    of text as it comes; by default a notebook's output grows by it, and elsewhere it is printed, with a line break at
    the end. `options` as in `generate`. Raises UnusableImage for a file that holds no sound image.
    """
    images = [images] if isinstance(images, (str, Path, Image.Image)) else list(images)
    images = [image if isinstance(image, Image.Image) else open_image(image) for image in images]
    row = {"messages": [user(prompt, len(images))], "images": images}
    inputs = VisionCollator(processor).prompts([row]).to(model.device)
    if write is None:
        write = _grow_output() if in_notebook() else _print
    streamer = _Pieces(processor.tokenizer, write)
    settings = decoding(processor, {"max_new_tokens": max_new_tokens} | options)
    with answering(model), torch.inference_mode():
        model.generate(**inputs, **settings, streamer=streamer)
    if write is _print:
        print()
    return streamer.text()


def _print(piece):
    print(piece, end="", flush=True)


def _grow_output():
    """A function that adds to one output of the cell: printed pieces would be saved as one output each."""
    from IPython.display import display

    pieces, output = [], display({"text/plain": ""}, raw=True, display_id=True)

    def write(piece):
        pieces.append(piece)
        output.update({"text/plain": "".join(pieces)}, raw=True)

    return write


class _Pieces(BaseStreamer):
    """Hands on the text of the tokens, all decoded together each time: a token's text depends on those before it.

    transformers' TextStreamer starts anew after a line break, where some tokenizers then lose the indent of a line.
    """

    def __init__(self, tokenizer, write):
        self.tokenizer, self.write = tokenizer, write
        self.tokens, self.written = None, ""

    def put(self, tokens):
        if self.tokens is None:  # the prompt
            self.tokens = []
            return
        self.tokens += tokens.tolist()
        if not self.text().endswith(_UNFINISHED):
            self.end()

    def end(self):
        if piece := self.text()[len(self.written) :]:
            self.write(piece)
            self.written += piece

    def text(self):
        return self.tokenizer.decode(self.tokens, skip_special_tokens=True).strip()
