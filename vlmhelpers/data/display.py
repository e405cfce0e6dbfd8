"""Rows as a reader sees them: images beside texts."""

import html

from vlmhelpers.common.display import Html, thumbnail
from vlmhelpers.data.schema import answer_of, message_text


def show_rows(dataset, rows, **answers):
    """Some rows of a dataset as a table: pictures, prompt, expected answer, and a column for each list in `answers`.

    `rows` are 0-based places; each list holds one string per row of the dataset. A cell that differs from the
    expected answer is marked.
    """
    lines, markup = [], []
    for i in rows:
        row = dataset[i]
        expected = answer_of(row)
        prompt = message_text([m for m in row["messages"] if m["role"] == "user"][-1])
        given = {name: texts[i] for name, texts in answers.items()}
        cells = [_cell(prompt), _cell(expected), *(_cell(text, marked=text != expected) for text in given.values())]
        markup.append(f"<tr><td>{''.join(map(thumbnail, row['images']))}</td>{''.join(cells)}</tr>")
        lines += [f"{i}: {prompt}", f"   expected: {expected}", *(f"   {n}: {t}" for n, t in given.items())]
    heads = "".join(f"<th>{html.escape(head)}</th>" for head in ("", "prompt", "expected", *answers))
    return Html(f"<table><tr>{heads}</tr>{''.join(markup)}</table>", "\n".join(lines))


def _cell(text, marked=False):
    style = "text-align:left;max-width:18em;overflow-wrap:anywhere"
    if marked:
        style += ";background:#d9534f33"
    return f'<td style="{style}">{html.escape(text)}</td>'
