"""One answer, shown while the model writes it: in a notebook, in a terminal, or wherever `write` puts it."""

from pathlib import Path

import torch
from PIL import Image
from transformers.generation.streamers import BaseStreamer

from vlmhelpers.batches.collator import VisionCollator
from vlmhelpers.common.display import in_notebook
from vlmhelpers.common.images import open_image
from vlmhelpers.data.schema import user
from vlmhelpers.inference.generation import decoding
from vlmhelpers.models.backends import answering

_UNFINISHED = "\ufffd"  # stands for a character of which a token has written only some bytes


def stream_answer(model, processor, prompt, images=(), max_new_tokens=256, write=None, **options):
    """Shows the answer to one prompt while it comes, and returns it whole; the same that `generate` gives.

    `images`: none, one or several pictures (PIL images, or paths of files), which stand before the text. `write` takes
    each piece of text as it comes; by default a notebook's output grows by it, and elsewhere it is printed, with a line
    break at the end. `options` and what is greedy are as in `generate`. Raises UnusableImage for a file that holds no
    sound picture.
    """
    images = [images] if isinstance(images, (str, Path, Image.Image)) else list(images)
    pictures = [image if isinstance(image, Image.Image) else open_image(image) for image in images]
    row = {"messages": [user(prompt, len(pictures))], "images": pictures}
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

    pieces = []
    output = display({"text/plain": ""}, raw=True, display_id=True)

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
        text = self.text()
        if not text.endswith(_UNFINISHED):
            self._write(text)

    def end(self):
        self._write(self.text())

    def text(self):
        return self.tokenizer.decode(self.tokens, skip_special_tokens=True).strip()

    def _write(self, text):
        if piece := text[len(self.written) :]:
            self.write(piece)
            self.written += piece
