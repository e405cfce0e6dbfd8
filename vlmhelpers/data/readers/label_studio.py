"""Tasks of Label Studio's JSON export as rows of fields: those of the task's data, and one for each control."""

from vlmhelpers.data.readers.source import SourceRow

_TEXTS = {"textarea": "text", "choices": "choices", "taxonomy": "taxonomy", "rating": "rating", "number": "number"}


def is_task(fields: dict) -> bool:
    """Whether a row's fields are those of a task."""
    return isinstance(fields.get("data"), dict) and isinstance(fields.get("annotations"), list)


def read_task(row: SourceRow) -> SourceRow:
    """The row seen as the fields of its data, and each answer under the name of its control (`from_name`).

    A task without an annotation, or with several that differ, is a problem, and so are boxes and other regions.
    """
    data, annotations = row.take("data"), row.take("annotations")
    given = [one for one in annotations if isinstance(one, dict) and not one.get("was_cancelled")]
    answers = [_answers(row, one.get("result")) for one in given]
    if not answers:
        skipped = " (was_cancelled)" if annotations else ""
        row.reject(f"no annotation of the task{skipped}", "annotate it, or leave it out")
    elif any(other != answers[0] for other in answers):
        row.reject(f"{len(answers)} annotations that differ", "keep the one to learn")
    return row.with_fields(data | (answers[0] if answers else {}))


def _answers(row, results):
    answers = {}
    for result in results if isinstance(results, list) else []:
        kind, value = result.get("type"), result.get("value") or {}
        if kind not in _TEXTS:
            row.reject(f"{kind} of an annotation is not read", "annotate with a text or choices, or leave it out")
            continue
        found = value.get(_TEXTS[kind])
        texts = found if isinstance(found, list) else [found]
        joint = "\n" if kind == "textarea" else ", "
        answers[str(result.get("from_name"))] = joint.join(row.as_text(text, str(kind)) for text in texts)
    return answers
