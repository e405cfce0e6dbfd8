"""Rows are answered by one process or several, which may be ended and started again at any time."""

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from pathlib import Path

from datasets import Dataset
from tqdm.auto import tqdm

from vlmhelpers.common.distributed import gather, process_share
from vlmhelpers.common.files import one_process
from vlmhelpers.inference.answer_log import Answer, AnswerLog, log_file, row_keys
from vlmhelpers.inference.speed import Answers

Batches = Callable[[set[int], slice], Iterable[dict[int, Answer]]]


def answer_rows(
    dataset: Dataset,
    batches: Batches,
    settings: Callable[[], dict],
    max_new_tokens: int,
    progress: bool | Callable[[int, int], object] = True,
    save_to: str | Path | None = None,
    split: bool = False,
) -> Answers:
    """The answers to all rows, as `generate` gives them.

    `batches(done, share)` answers the rows that are not done, of which `share` cuts this process's from any list.
    `settings`: what decides the answers, for `AnswerLog`.
    """
    part, processes = process_share() if split else (0, 1)
    with one_process(log_file(save_to, part), "generate") if save_to else nullcontext():
        log = AnswerLog(save_to, settings(), row_keys(dataset), part) if save_to else None
        known = log.answers if log else {}
        gather(None, processes)  # until all have read what is there, nobody adds to it
        answers, total = dict(known), len(dataset)
        tell = progress if callable(progress) else lambda done, total: None
        with tqdm(total=total, initial=len(known), desc="answers", disable=part > 0 or progress is not True) as bar:
            tell(len(known), total)
            for found in batches(set(known), slice(part, None, processes)):
                if log:
                    log.append(found)
                answers |= found
                done = min(total, len(known) + processes * (len(answers) - len(known)))  # the others are as far
                bar.update(done - bar.n)
                tell(done, total)
        for others in gather(answers, processes):
            answers |= others
    cut = sum(answer.cut for answer in answers.values())
    if cut and part == 0:
        limit = f"{cut} of {total} answers were cut off at max_new_tokens={max_new_tokens}"
        print(f"{limit}: raise it, or look whether the model repeats itself")
    return Answers(answers[i] for i in range(total))
