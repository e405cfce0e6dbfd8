"""A few held-out rows, answered again and again while a model is trained, so that one sees it learn."""

import io
import json
from contextlib import redirect_stdout
from pathlib import Path

from datasets import Dataset
from transformers import ProcessorMixin, Trainer, TrainerCallback

from vlmhelpers.common.display import image_uri
from vlmhelpers.common.files import atomic_file
from vlmhelpers.common.printable import one_line
from vlmhelpers.data.schema import answer_of, message_text
from vlmhelpers.inference.generation import generate
from vlmhelpers.training.callbacks import random_state_kept
from vlmhelpers.training.progress import SAMPLES, say

_TOKENS = 64  # of an answer
_SIDE = 128  # pixels of a thumbnail


class AnswerSampler(TrainerCallback):
    """Answers `rows` of messages greedily, before the first step and at each validation; changes nothing of training.

    The answers are entries of the folder's progress.jsonl, {"event": "samples", "step": N, "answers": [...]}; the rows
    are in its samples.json, a list of {"prompt", "expected", "images"}, images as data URIs. Without validation rows it
    answers every `every` steps, and at the last one. An error ends the sampling alone, with a line in the log.
    """

    def __init__(self, trainer: Trainer, processor: ProcessorMixin, rows: Dataset, folder: Path, every: int):
        self.trainer, self.processor, self.rows, self.folder, self.every = trainer, processor, rows, folder, every

    def on_train_begin(self, args, state, control, **kwargs):
        self._on_main(state, self._describe_rows)
        if state.global_step == 0:
            self._on_main(state, self._answer)

    def on_evaluate(self, args, state, control, **kwargs):
        self._on_main(state, self._answer)

    def on_step_end(self, args, state, control, **kwargs):
        is_due = state.global_step % self.every == 0 or state.global_step >= state.max_steps
        if args.eval_strategy == "no" and is_due:
            self._on_main(state, self._answer)

    def _on_main(self, state, task):
        if self.rows is None or not state.is_world_process_zero:
            return
        try:
            task(state)
        except Exception as error:  # a run is worth more than a look at it
            self.rows = None
            print(one_line(f"no answers are sampled from now on: {type(error).__name__}: {error}"))

    def _describe_rows(self, state):
        described = [
            {
                "prompt": "\n".join(message_text(message) for message in row["messages"][:-1]),
                "expected": answer_of(row),
                "images": [image_uri(image, _SIDE) for image in row["images"]],
            }
            for row in self.rows
        ]
        with atomic_file(self.folder / SAMPLES, encoding="utf-8") as file:
            json.dump(described, file)

    def _answer(self, state):
        # Nobody can raise the limit that `generate` speaks of.
        with random_state_kept(), self.trainer.accelerator.autocast(), redirect_stdout(io.StringIO()):
            answers = generate(self.trainer.model, self.processor, self.rows, max_new_tokens=_TOKENS, progress=False)
        say(self.folder, event="samples", step=state.global_step, answers=answers)
