"""One answer, shown while the model writes it: in a notebook, in a terminal, or wherever `write` puts it."""

from collections.abc import Callable, Iterable
from functools import partial
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
from vlmhelpers.models.backends import eval_mode

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

    `images` (PIL images or paths of files) stand before the text. `write` takes each piece of text; by default it is
    printed, or added to one output of a notebook's cell. `options` are as in `generate`. Raises UnusableImage.
    """
    images = [images] if isinstance(images, (str, Path, Image.Image)) else list(images)
    images = [image if isinstance(image, Image.Image) else open_image(image) for image in images]
    row = {"messages": [user(prompt, len(images))], "images": images}
    inputs = VisionCollator(processor).prompts([row]).to(model.device)
    printed = write is None and not in_notebook()
    write = write or (partial(print, end="", flush=True) if printed else _grow_output())
    streamer = _Pieces(processor.tokenizer, write)
    settings = decoding(processor, {"max_new_tokens": max_new_tokens} | options)
    with eval_mode(model), torch.inference_mode():
        model.generate(**inputs, **settings, streamer=streamer)
    if printed:
        print()
    return streamer.text()


def _grow_output():
    """A function that adds to one output of the cell: printed pieces would be saved as one output each."""
    from IPython.display import display

    pieces, output = [], display({"text/plain": ""}, raw=True, display_id=True)

    def write(piece):
        pieces.append(piece)
        output.update({"text/plain": "".join(pieces)}, raw=True)

    return write


class _Pieces(BaseStreamer):
    """Hands on the text of the tokens, all decoded together: a token's text depends on those before it.

    transformers' TextStreamer starts anew after a line break, where some tokenizers then lose the indent of a line.
    """

    def __init__(self, tokenizer, write):
        self.tokenizer, self.write = tokenizer, write
        self.tokens, self.written = None, ""

    def put(self, tokens):
        self.tokens = [] if self.tokens is None else self.tokens + tokens.tolist()  # the prompt comes first
        if not self.text().endswith(_UNFINISHED):
            self.end()

    def end(self):
        if piece := self.text()[len(self.written) :]:
            self.write(piece)
            self.written += piece

    def text(self):
        return self.tokenizer.decode(self.tokens, skip_special_tokens=True).strip()
