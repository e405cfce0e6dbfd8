"""Tasks of Label Studio's JSON export as rows of fields: those of the task's data, and one for each control."""

from vlmhelpers.data.readers.field_names import ALTERNATIVES, CONVERSATIONS, is_conversation
from vlmhelpers.data.readers.messages_in import role_of
from vlmhelpers.data.readers.source import SourceRow, from_json

_TEXTS = {"textarea": "text", "choices": "choices", "taxonomy": "taxonomy", "rating": "rating", "number": "number"}


def is_task(fields: dict) -> bool:
    """Whether a row's fields are those of a task."""
    return isinstance(fields.get("data"), dict) and isinstance(fields.get("annotations"), list)


def read_task(row: SourceRow) -> SourceRow:
    """The row seen as the fields of its data, and each answer under the name of its control (`from_name`).

    A conversation in the data that ends with the question is answered by the annotation. A task without an annotation,
    or with several that differ, is a problem, and so are boxes and other regions.
    """
    data, annotations = row.take("data"), row.take("annotations")
    given = [one for one in annotations if isinstance(one, dict) and not one.get("was_cancelled")]
    answers = [_answers(row, one.get("result")) for one in given]
    if not answers:
        skipped = " (was_cancelled)" if annotations else ""
        row.reject(f"no annotation of the task{skipped}", "annotate it, or leave it out")
    elif any(other != answers[0] for other in answers):
        row.reject(f"{len(answers)} annotations that differ", "keep the one to learn")
    elif both := data.keys() & answers[0].keys():
        row.reject(f"{sorted(both)[0]!r} is in data and the name of a control", "rename one of them in the export")
    given = answers[0] if answers else {}
    form = next((name for name in CONVERSATIONS if is_conversation(data, name)), None)
    return row.with_fields(data | given | (_answered(row, form, data[form], given) if form and given else {}))


def _answered(row, form, messages, answers):
    """The conversation of a task with its answer, which one of the controls has."""
    messages = from_json(messages)
    if not isinstance(messages, list) or not messages or role_of(messages[-1]) != "user":
        reason = f"{form} in data has an answer, and {' and '.join(answers)} of the annotation another"
        row.reject(reason, "end it with the question, or leave the annotation out")
        return {}
    usual = [name for name in answers if name in ALTERNATIVES["response_field"]] or [*answers]
    if len(usual) > 1:
        row.reject(f"several answers of the annotation: {', '.join(usual)}", "call one of the controls answer")
    row.used.add(usual[0])
    return {form: [*messages, {"role": "assistant", "content": answers[usual[0]]}]}


def _answers(row, results):
    answers = {}
    for result in results if isinstance(results, list) else []:
        kind, value = (result.get("type"), result.get("value")) if isinstance(result, dict) else (result, None)
        if str(kind) not in _TEXTS or not isinstance(value, dict):
            row.reject(f"{kind} of an annotation is not read", "annotate with a text or choices, or leave it out")
            continue
        name, found = str(result.get("from_name")), value.get(_TEXTS[kind])
        texts = [row.as_text(text, kind) for text in (found if isinstance(found, list) else [found])]
        earlier = [answers[name]] if name in answers else []  # of another region
        answers[name] = ("\n" if kind == "textarea" else ", ").join([*earlier, *texts])
    return answers
