"""Answers of an ONNX export: onnxruntime computes them, and no weights are in torch."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForImageTextToText, BatchFeature

from vlmhelpers.batches.collator import VisionCollator
from vlmhelpers.export.onnx import PARTS, PARTS_FILE, need_onnx
from vlmhelpers.families import family_of
from vlmhelpers.families.received import load_config, read_object
from vlmhelpers.models.loading import load_processor

_OF_TOKENS = ("input_ids", "attention_mask", "mm_token_type_ids")


class OnnxModel:
    """The model in a folder that `to_onnx` has written, on the CPU, with as many threads as torch has.

    Raises FileNotFoundError without its files, ImportError without onnxruntime.
    """

    def __init__(self, folder: str | Path):
        need_onnx()
        import onnxruntime

        folder = Path(folder)
        for name in (PARTS_FILE, *(f"{part}.onnx" for part in PARTS)):
            if not (folder / name).is_file():
                raise FileNotFoundError(f"{folder} has no {name}: pass the folder that to_onnx has written")
        self.processor, self.numbers = load_processor(folder), read_object(folder / PARTS_FILE)
        self.collator, self.family = VisionCollator(self.processor), family_of(self.processor)
        with torch.device("meta"):  # for what its family asks of its shape
            self.model = AutoModelForImageTextToText.from_config(load_config(folder), trust_remote_code=False)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        paths = (str(folder / f"{part}.onnx") for part in PARTS)
        self.vision, self.embedding, self.decoder = (onnxruntime.InferenceSession(path, options) for path in paths)
        self.kept = [i for i in self.decoder.get_inputs() if i.name.startswith("past_key_values.")]
        self.deep = [i.name for i in self.decoder.get_inputs() if i.name.startswith("deep.")]

    def generate(self, rows: Iterable[dict], max_new_tokens: int = 64) -> list[str]:
        """The greedy answers to the rows' prompts, one by one, as `vlmhelpers.generate` gives them."""
        return [self._answer(self.collator.prompts([row]), max_new_tokens) for row in rows]

    def logits(self, batch: BatchFeature) -> np.ndarray:
        """(n, t, vocabulary) of a batch of the collator's, of n rows of t tokens."""
        rows, tokens = batch["input_ids"].shape
        return self._decode(self._inputs(batch), self._empty(rows), np.arange(tokens))[0]

    def _answer(self, batch, max_new_tokens):
        step, cache, written = self._inputs(batch), self._empty(1), []
        while True:
            length = step["inputs_embeds"].shape[1]
            logits, cache = self._decode(step, cache, np.array([length - 1]))
            written.append(int(logits[0, 0].argmax()))
            if written[-1] in self.numbers["eos_token_ids"] or len(written) == max_new_tokens:
                return self.processor.decode(written, skip_special_tokens=True).strip()
            if step["attention_mask"].shape[1] == self.numbers["restart_length"]:
                step, cache = self._inputs(_longer(batch, written)), self._empty(1)
            else:
                step = self._following(step, written[-1])

    def _inputs(self, batch):
        """What the decoder takes for a whole batch: features in the places of image tokens."""
        ids = batch["input_ids"].numpy()
        (embeds,) = self.embedding.run(None, {"input_ids": ids})
        states = [embeds, *(np.zeros_like(embeds) for _ in self.deep)]
        if "pixel_values" in batch:
            inputs = self.family.vision_inputs(self.model, batch)
            found = self.vision.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
            for state, features in zip(states, found, strict=True):
                state[ids == self.numbers["image_token_id"]] = features
        positions = self.family.positions(self.model, batch).numpy()
        inputs = {"attention_mask": batch["attention_mask"].numpy(), "position_ids": positions}
        return inputs | dict(zip(("inputs_embeds", *self.deep), states, strict=True))

    def _following(self, step, token):
        """The inputs of one token after those of `step`."""
        (embeds,) = self.embedding.run(None, {"input_ids": np.array([[token]])})
        positions = step["position_ids"]
        return {
            "inputs_embeds": embeds,
            "attention_mask": np.pad(step["attention_mask"], ((0, 0), (0, 1)), constant_values=1),
            "position_ids": np.full_like(positions[..., :1], positions.max() + 1),
            **{name: np.zeros_like(embeds) for name in self.deep},
        }

    def _empty(self, rows):
        """Keys and values of no tokens: (rows, heads, 0, head size) by name."""
        return {i.name: np.zeros((rows, i.shape[1], 0, i.shape[3]), np.float32) for i in self.kept}

    def _decode(self, step, cache, logits_at):
        logits, *kept = self.decoder.run(None, step | cache | {"logits_at": logits_at})
        return logits, dict(zip(cache, kept, strict=True))


def _longer(batch, written):
    """The batch of one row with the tokens written so far."""
    ones = torch.ones(1, len(written), dtype=torch.long)
    more = {"input_ids": torch.tensor([written]), "attention_mask": ones, "mm_token_type_ids": 0 * ones}
    return dict(batch) | {name: torch.cat([batch[name], more[name]], 1) for name in _OF_TOKENS if name in batch}
