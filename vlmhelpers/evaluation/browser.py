"""A browser of answers: images, prompts and what each model said, filtered, or as a table where no kernel is."""

import re
from functools import cached_property

import numpy as np
from datasets import Dataset
from markupsafe import Markup

from vlmhelpers.common.display import html_table, thumbnail, with_widget
from vlmhelpers.data.given import decoded_row, given_rows, given_texts
from vlmhelpers.data.schema import last_question
from vlmhelpers.evaluation.comparison import Comparison
from vlmhelpers.evaluation.scoring import nfc, references_of, without_reasoning

_PER_PAGE, _IMAGES, _CHARACTERS = 4, 3, 4000  # rows of a page of the panel; images of a row; of a text
_STATIC_ROWS, _STATIC_CHARACTERS, _STATIC_BYTES = 3, 400, 50_000  # of each kind; of a text; of all


def browse(dataset: Dataset, comparison: Comparison | None = None, **answers: list[str]) -> "Browser":
    """A `Browser` of rows and lists of answers by name, such as `browse(test, base=..., tuned=...)`.

    Right are the last list's exact matches, gained and lost its changes against the first, or the `comparison`'s.
    Raises ValueError unless there is an answer per row.
    """
    if not answers:
        raise ValueError("no answers: give lists by name, such as browse(test, tuned=answers)")
    dataset = given_rows(dataset)
    answers = {name: given_texts(texts, dataset, f"answers of {name!r}") for name, texts in answers.items()}
    return Browser(dataset, comparison, answers)


class Browser:
    """A panel in a live notebook, else a table of some rows of each kind; `kinds`: "all", "lost", ... -> indices."""

    def __init__(self, dataset, comparison, answers):
        self.dataset, self.names = dataset, list(answers)
        expected = references_of(dataset)
        prompts = map(last_question, dataset.with_format(None)["messages"])
        self.texts = list(zip(prompts, expected, *(map(nfc, texts) for texts in answers.values()), strict=True))
        hits = [[a == e for a, e in zip(without_reasoning(texts), expected, strict=True)] for texts in answers.values()]
        first, last = np.array(hits[0], dtype=bool), np.array(hits[-1], dtype=bool)
        kinds = {"all": last | True, "wrong": ~last, "right": last}
        if len(hits) > 1:
            kinds |= {"gained": last & ~first, "lost": first & ~last}
        self.kinds = {kind: np.flatnonzero(rows).tolist() for kind, rows in kinds.items()}
        if comparison is not None:
            self.kinds |= {"gained": list(comparison.gained), "lost": list(comparison.lost)}
        self.kind, self.search, self.page = "all", "", 0

    def shown(self) -> list[int]:
        """The indices of the rows of the chosen kind that hold the search text."""
        return [i for i in self.kinds[self.kind] if nfc(self.search).lower() in "\n".join(self.texts[i]).lower()]

    @cached_property
    def panel(self):
        """An ipywidgets VBox."""
        from ipywidgets import HTML, Button, Dropdown, HBox, Label, Text, VBox

        options = [(f"{kind} ({len(rows)})", kind) for kind, rows in self.kinds.items()]
        kind = Dropdown(options=options, description="rows")
        search = Text(placeholder="search in the texts", continuous_update=False)
        back, forward = Button(description="previous"), Button(description="next")
        status, page = Label(), HTML()

        def show(number=0):
            self.kind, self.search = kind.value, search.value
            rows = self.shown()
            pages = max(1, -(-len(rows) // _PER_PAGE))
            self.page = min(max(number, 0), pages - 1)
            status.value = f"{len(rows)} rows, page {self.page + 1} of {pages}"
            cells = [self._cells(i) for i in rows[self.page * _PER_PAGE :][:_PER_PAGE]]
            page.value = self._table(cells) if cells else "<p>no rows</p>"
            back.disabled, forward.disabled = self.page == 0, self.page + 1 == pages

        kind.observe(lambda change: show(), names="value")
        search.observe(lambda change: show(), names="value")
        back.on_click(lambda button: show(self.page - 1))
        forward.on_click(lambda button: show(self.page + 1))
        show()
        return VBox([HBox([kind, search]), HBox([back, forward, status]), page])

    def _repr_html_(self):
        """Some rows of each kind, each row once, under 60 kB: it needs no kernel and no script."""
        rows = {}
        for kind in ("lost", "wrong", "gained", "right"):
            for i in [i for i in self.kinds.get(kind, ()) if i not in rows][:_STATIC_ROWS]:
                cells = self._cells(i, kind, _STATIC_CHARACTERS)
                if len(self._table([*rows.values(), cells]).encode()) <= _STATIC_BYTES:
                    rows[i] = cells
        return Markup("<p>{} Some of each:</p>{}").format(repr(self), self._table(rows.values()))

    def __repr__(self):
        counts = ", ".join(f"{len(rows)} {kind}" for kind, rows in self.kinds.items() if kind != "all")
        return f"{len(self.texts)} rows: {counts}."

    def _repr_mimebundle_(self, include=None, exclude=None):
        """The static table, and in a live notebook the panel."""
        return with_widget(self, lambda: self.panel)

    def _table(self, rows):
        return html_table(("row", "image", "prompt", "expected", *self.names), rows)

    def _cells(self, i, kind="", characters=_CHARACTERS):
        images = Markup().join(map(thumbnail, decoded_row(self.dataset, i)["images"][:_IMAGES]))
        cut = (text if text == (start := text[:characters]) else f"{start}…" for text in self.texts[i])
        prompt, expected, *answers = cut
        marked = (mark_difference(answer, expected) for answer in answers)
        return Markup("{}<br>{}").format(i, kind), images, prompt, expected, *marked


def mark_difference(answer: str, expected: str) -> Markup:
    """The answer as HTML in which the words that are not as expected stand out, and a caret where some are missing."""
    from rapidfuzz.distance import Levenshtein  # difflib takes minutes for an answer that repeats itself

    words, expected = (re.findall(r"\w+|\W", text) for text in (answer, expected))
    parts = []
    for kind, _, _, start, end in Levenshtein.opcodes(expected, words):
        text = "".join(words[start:end])
        marked = Markup('<mark style="background:#d9534f55">{}</mark>').format(text or "‸")
        parts.append(text if kind == "equal" else marked)
    return Markup().join(parts)
