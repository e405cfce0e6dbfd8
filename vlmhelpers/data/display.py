"""Rows as a reader sees them: images beside texts."""

from collections.abc import Iterable, Sequence

from datasets import Dataset
from markupsafe import Markup

from vlmhelpers.common.display import Html, html_table, thumbnail
from vlmhelpers.data.schema import answer_of, last_question

_DIFFERENT = Markup('<span style="background:#d9534f33">{}</span>')


def show_rows(dataset: Dataset, rows: Iterable[int], **answers: Sequence[str]) -> Html:
    """Some rows of a dataset as a table: images, prompt, expected answer, and a column for each list in `answers`.

    `rows` are indices from 0; each list holds one string per row of the dataset. A cell that differs from the
    expected answer is marked.
    """
    lines, table = [], []
    for index in rows:
        row = dataset[index]
        prompt, expected = last_question(row["messages"]), answer_of(row)
        given = {name: texts[index] for name, texts in answers.items()}
        cells = [text if text == expected else _DIFFERENT.format(text) for text in given.values()]
        table.append([Markup("").join(map(thumbnail, row["images"])), prompt, expected, *cells])
        lines += [f"{index}: {prompt}", f"   expected: {expected}", *(f"   {n}: {t}" for n, t in given.items())]
    return Html(html_table(["", "prompt", "expected", *answers], table), "\n".join(lines))
