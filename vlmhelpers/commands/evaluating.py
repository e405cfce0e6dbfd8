"""A run's answers to rows that it has not seen, beside those of its base, and what they are worth."""

import json
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

from datasets import Dataset
from markupsafe import Markup

from vlmhelpers.commands.answering import batch_options, rows_to_answer
from vlmhelpers.commands.served import use_model
from vlmhelpers.commands.settings import Evaluating
from vlmhelpers.commands.tuned import Tuned, find_trained, weights_digest
from vlmhelpers.common.display import html_table
from vlmhelpers.common.distributed import gather, on_main, process_share
from vlmhelpers.common.files import atomic_file
from vlmhelpers.common.printable import printable
from vlmhelpers.data.schema import answer_of
from vlmhelpers.data.turns import prompted
from vlmhelpers.evaluation.ablation import ImageAblation, image_ablation
from vlmhelpers.evaluation.browser import Browser, browse
from vlmhelpers.evaluation.comparison import Comparison, compare
from vlmhelpers.evaluation.metrics import METRICS
from vlmhelpers.evaluation.scoring import Evaluation, evaluate, references_of
from vlmhelpers.evaluation.statistics import Score
from vlmhelpers.inference.answer_log import OtherAnswers, log_files
from vlmhelpers.inference.generation import generate
from vlmhelpers.inference.speed import Speed
from vlmhelpers.training.run import load_held_out

FOLDER, SCORES = "evaluation", "evaluation.json"
_SHOTS = 3  # examples in a better prompt
_INSTRUCTION = "Answer in the form of the examples."


@dataclass(frozen=True, repr=False)
class EvaluationResult:
    """What `evaluate_run` found, by the names of the models: base, prompted, tuned."""

    folder: str  # with the answers, and the scores in evaluation.json
    dataset: Dataset
    answers: dict[str, list[str]]
    evaluations: dict[str, Evaluation]
    comparison: Comparison | None  # of base and tuned; None where one of them did not answer
    ablation: ImageAblation | None = None
    notes: list[str] = field(default_factory=list)  # what could not be done, and why
    speeds: dict[str, Speed] = field(default_factory=dict)  # of those that were timed

    @classmethod
    def read(cls, run: str | Path) -> "EvaluationResult":
        """The last evaluation of a run by its held-out rows, without the ablation.

        Raises FileNotFoundError without one, and ValueError for one of other rows, of a model before it was trained
        further, or in a form that is not known.
        """
        folder = Path(run) / FOLDER
        values, rows = _read_scores(folder / SCORES), load_held_out(run)["test"]
        changed = values["dataset"] or values["weights"] != weights_digest(find_trained(run))
        if changed or values["rows"] > len(rows):
            raise ValueError(f"{folder} is of other rows, or of other weights than now: evaluate the run again")
        rows = rows.select(range(values["rows"]))
        found = cls.of_answers(str(folder), rows, values["answers"], _metrics(values["metrics"]))
        return replace(found, speeds=values["speeds"])

    @classmethod
    def of_answers(cls, folder: str, rows: Dataset, answers: dict[str, list[str]], metrics: str | list[str] = ()):
        """The scores and the comparison of known answers, a list for each model by its name."""
        evaluations = {name: evaluate(given, rows, metrics) for name, given in answers.items()}
        both = {"base", "tuned"} <= evaluations.keys()
        comparison = compare(*map(evaluations.get, ("base", "tuned", "prompted"))) if both else None
        speeds = {name: speed for name, given in answers.items() if (speed := getattr(given, "speed", None))}
        return cls(folder, rows, answers, evaluations, comparison, speeds=speeds)

    @property
    def browser(self) -> Browser:
        """The rows with all answers, to look at."""
        return browse(self.dataset, self.comparison, **self.answers)

    def __repr__(self):
        lines = [f"{name}, {len(self.dataset)} rows:\n{found}" for name, found in self.evaluations.items()]
        lines += ["\n".join(f"{name}: {speed}" for name, speed in self.speeds.items())] * bool(self.speeds)
        lines += [str(part) for part in (self.comparison, self.ablation) if part is not None]
        return printable("\n\n".join([*lines, *self.notes, f"answers and scores -> {self.folder}"]))

    def _repr_html_(self):
        names = dict.fromkeys(name for found in self.evaluations.values() for name in found.scores)
        cells = [[found.scores.get(name, "") for found in self.evaluations.values()] for name in names]
        rows = [(name, *scores) for name, scores in zip(names, cells, strict=True)]
        rows += [("speed", *(self.speeds.get(name, "") for name in self.evaluations))] * bool(self.speeds)
        parts = [html_table(("score", *self.evaluations), rows)]
        parts += [part._repr_html_() for part in (self.comparison, self.ablation) if part is not None]
        return Markup().join([*parts, *(Markup("<p>{}</p>").format(printable(note)) for note in self.notes)])


def evaluate_run(
    settings: Evaluating, progress: Callable[[str, int, int], object] | None = None, tuned: Tuned | None = None
) -> EvaluationResult:
    """Lets a tuned model and its base answer rows, scores the answers and compares them.

    Answers are saved as they come, so that the same call goes on; those of another model or with other settings are
    replaced. `progress` takes a name, how many rows are answered, and of how many. `tuned`: the model that the settings
    name, where it is loaded. Raises ValueError for an unknown metric and, before any is answered, for a row without an
    expected answer, and the errors of `use_model`, of the readers and of `generate`. Processes that `accelerate
    launch` has started share the rows.
    """
    metrics = _metrics(settings.metrics)
    tuned = use_model(settings, tuned)
    rows = rows_to_answer(settings, tuned.run)
    references_of(rows)  # raises for rows without one now, and not when all are answered
    folder = Path(settings.output or Path(tuned.run or "outputs") / FOLDER)
    options = batch_options(settings, tuned, rows)
    answers = {}
    for name, asked in _asked(settings, tuned, rows).items():
        with nullcontext((tuned.model, tuned.processor)) if name == "tuned" else tuned.base_model() as loaded:
            answers[name] = _answer(loaded, asked, folder / f"{name}.jsonl", _teller(progress, name), options)
    result = EvaluationResult.of_answers(str(folder), rows, answers, metrics)
    result.notes.extend([tuned.note] if tuned.note else [])
    if settings.base and tuned.base is None:
        why = "is all that vLLM has" if settings.engine == "vllm" else "does not say which model it was made from"
        result.notes.append(f"No base: {tuned.folder} {why}")
    if settings.ablation:
        result = _ablated(tuned, result, _teller(progress, "ablation"), options)
    on_main(lambda: _save(settings, tuned, result))
    return result


def _ablated(tuned, result, progress, options):
    """The result with the image ablation, or a note why there is none."""
    options = options | {"answers": result.answers["base" if tuned.is_base else "tuned"], "progress": progress}
    try:
        return replace(result, ablation=image_ablation(tuned.model, tuned.processor, result.dataset, **options))
    except ValueError as error:
        result.notes.append(f"No image ablation: {error}")
        return result


def _metrics(text):
    names = [name.strip() for name in (text or "").split(",") if name.strip()]
    if names == ["all"]:
        return "all"
    by_lower = {name.lower(): name for name in METRICS}
    if unknown := [name for name in names if name.lower() not in by_lower]:
        raise ValueError(
            f"metrics is {text!r}: there is no {unknown[0]!r}; choose all, or some of {', '.join(METRICS)}"
        )
    return [by_lower[name.lower()] for name in names]


def _asked(settings, tuned, rows):
    """The rows that each model is asked, by its name, the base first."""
    asked = {"base": rows} if tuned.base and (settings.base or settings.prompted or tuned.is_base) else {}
    if settings.prompted and not tuned.base:
        raise ValueError(f"prompted asks the base, and {tuned.folder} does not say which one it was made from")
    if settings.prompted:
        asked["prompted"] = _better_prompts(settings, tuned, rows)
    return asked if tuned.is_base else asked | {"tuned": rows}


def _better_prompts(settings, tuned, rows):
    shots = load_held_out(tuned.run)["examples"] if tuned.run and _has_held_out(tuned.run) else []
    shots = [answer_of(row) for row in shots.select(range(min(_SHOTS, len(shots))))] if len(shots) else []
    if not (shots or settings.instruction):
        raise ValueError(
            "a better prompt needs an instruction, or examples of a run with test_rows: give an instruction"
        )
    return prompted(rows, settings.instruction or _INSTRUCTION, shots)


def _has_held_out(run):
    try:
        return bool(load_held_out(run))
    except FileNotFoundError:
        return False


def _teller(progress, name):
    return True if progress is None else lambda done, total: progress(name, done, total)


def _answer(loaded, rows, file, progress, options):
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        return generate(*loaded, rows, progress=progress, save_to=file, **options)
    except OtherAnswers:  # of the model before it was trained further, or by other settings
        gather(None, process_share()[1])  # until all processes have read them
        on_main(lambda: [other.unlink() for other in log_files(file)])
        return generate(*loaded, rows, progress=progress, save_to=file, **options)


def _save(settings, tuned, result):
    scores = {
        name: {metric: _numbers(score) for metric, score in found.scores.items()}
        for name, found in result.evaluations.items()
    }
    values = {"model": tuned.folder, "weights": weights_digest(tuned.folder), "dataset": settings.dataset}
    values |= {"rows": len(result.dataset), "metrics": settings.metrics, "scores": scores}
    if result.comparison is not None:
        pairs = {pair.title: _numbers(pair) | {"p": pair.p_value} for pair in result.comparison.pairs}
        values["differences"] = pairs
    if result.ablation is not None:
        values["ablation"] = {name: _numbers(score) for name, score in result.ablation.scores.items()}
        values["verdict"] = result.ablation.verdict
    values["speeds"] = {name: asdict(speed) for name, speed in result.speeds.items()}
    values["answers"] = result.answers
    with atomic_file(Path(result.folder) / SCORES, encoding="utf-8") as file:
        json.dump(values, file, indent=1)


def _read_scores(file):
    """What `_save` has written. Raises FileNotFoundError without it, and ValueError for anything else."""
    with suppress(ValueError, TypeError, AttributeError, KeyError):
        values = json.loads(file.read_bytes())
        counts = {len(answers) for answers in values["answers"].values()}
        is_whole = {"dataset", "weights", "metrics"} <= values.keys() and isinstance(values["metrics"], str | None)
        if is_whole and counts == {values["rows"]}:
            return values | {"speeds": {name: Speed(**speed) for name, speed in values.get("speeds", {}).items()}}
    raise ValueError(f"{file} holds no scores, or those of another version: evaluate the run again")


def _numbers(score):
    return {entry.name: getattr(score, entry.name) for entry in fields(Score)}
