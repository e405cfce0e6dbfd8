"""A browser of answers: pictures, prompts and what each model said, filtered, or as a table where no kernel is."""

import difflib
import html
import re
from importlib.util import find_spec

from vlmhelpers.common.display import thumbnail
from vlmhelpers.data.schema import message_text
from vlmhelpers.data.turns import split_thinking
from vlmhelpers.evaluation.scoring import expected_answers

_PER_PAGE = 4
_STATIC_ROWS = 3  # of each kind
_STATIC_BYTES = 50_000
_LETTERS = 400  # of a text in the static table
_PICTURES = 3  # of a row
_CELL = 'style="text-align:left;vertical-align:top;max-width:18em;overflow-wrap:anywhere"'


def browse(dataset, comparison=None, **answers):
    """A `Browser` of the rows of a dataset and of the `answers` to them: name=list, such as base=..., tuned=....

    Each list holds one string per row. Right and wrong are the exact matches of the last list, gained and lost its
    changes against the first; with a `comparison` (see `compare`), the rows that it names. Raises ValueError without
    answers, or for a list of another length.
    """
    return Browser(dataset, comparison, answers)


class Browser:
    """Shows the rows as a panel in a live notebook, and as a table of some rows of each kind anywhere else.

    `kinds`: "all", "wrong", "right", and with two lists of answers or a comparison "gained" and "lost" -> places of
    rows. `shown()` are the places that the panel's filter and search leave; `page` is the part of them in view.
    """

    def __init__(self, dataset, comparison, answers):
        for name, texts in answers.items():
            if len(texts) != len(dataset):
                raise ValueError(f"{len(texts)} answers of {name!r} for {len(dataset)} rows: give one answer per row")
        if not answers:
            raise ValueError("no answers: give lists by name, such as browse(test, tuned=answers)")
        self.dataset, self.answers = dataset, answers
        self.expected = [split_thinking(text)[1] for text in expected_answers(dataset)]
        self.prompts = list(map(_prompt, dataset.with_format(None)["messages"]))
        self.kinds = self._kinds(comparison)
        self.kind, self.search, self.page = "all", "", 0
        self._panel = None

    def _kinds(self, comparison):
        hits = [
            [split_thinking(text)[1] == expected for text, expected in zip(texts, self.expected, strict=True)]
            for texts in self.answers.values()
        ]
        places = range(len(self.expected))
        kinds = {"all": list(places)}
        kinds |= {
            kind: [i for i in places if hits[-1][i] is right] for kind, right in (("wrong", False), ("right", True))
        }
        if comparison is not None:
            kinds |= {"gained": list(comparison.gained), "lost": list(comparison.lost)}
        elif len(hits) > 1:
            kinds |= {kind: [i for i in kinds[now] if hits[0][i] is not hits[-1][i]]
                      for kind, now in (("gained", "right"), ("lost", "wrong"))}  # fmt: skip
        return kinds

    def shown(self):
        """The places of the rows of the chosen kind whose prompt, expected answer or answers hold the search text."""
        return [i for i in self.kinds[self.kind] if self.search.lower() in self._text(i)]

    def _text(self, i):
        return "\n".join((self.prompts[i], self.expected[i], *(t[i] for t in self.answers.values()))).lower()

    def panel(self):
        """The panel, an ipywidgets VBox, made once."""
        if self._panel is None:
            from vlmhelpers.evaluation.browser_panel import make_panel

            self._panel = make_panel(self)
        return self._panel

    def page_html(self):
        """The page in view as an HTML table."""
        rows = self.shown()[self.page * _PER_PAGE :][:_PER_PAGE]
        return self._table("".join(self._row(i) for i in rows)) if rows else "<p>no rows</p>"

    def pages(self):
        """The number of pages, at least 1."""
        return max(1, -(-len(self.shown()) // _PER_PAGE))

    def _repr_html_(self):
        """Some rows of each kind, each row once, under 60 kB: it needs no kernel and no script."""
        lines, seen, left = [], set(), _STATIC_BYTES
        for kind in ("lost", "wrong", "gained", "right"):
            for i in [i for i in self.kinds.get(kind, ()) if i not in seen][:_STATIC_ROWS]:
                line = self._row(i, kind, _LETTERS)
                left -= len(line.encode())
                if left >= 0:
                    lines.append(line)
                    seen.add(i)
        return f"<p>{html.escape(repr(self))} Some of each:</p>{self._table(''.join(lines))}"

    def __repr__(self):
        counts = ", ".join(f"{len(rows)} {kind}" for kind, rows in self.kinds.items() if kind != "all")
        return f"{len(self.expected)} rows: {counts}."

    def _repr_mimebundle_(self, include=None, exclude=None):
        """The static table, and in a live notebook with ipywidgets the panel, which such a notebook prefers."""
        bundle = {"text/plain": repr(self), "text/html": self._repr_html_()}
        if find_spec("ipywidgets") and find_spec("IPython"):
            from IPython import get_ipython

            if get_ipython() is not None:
                view = "application/vnd.jupyter.widget-view+json"
                bundle[view] = self.panel()._repr_mimebundle_()[view]
        return bundle

    def _table(self, lines):
        heads = ("row", "picture", "prompt", "expected", *self.answers)
        return f"<table><tr>{''.join(f'<th>{html.escape(head)}</th>' for head in heads)}</tr>{lines}</table>"

    def _row(self, i, kind="", letters=None):
        pictures = "".join(map(thumbnail, self.dataset[i]["images"][:_PICTURES]))
        texts = [html.escape(_cut(text, letters)) for text in (self.prompts[i], self.expected[i])]
        expected = _cut(self.expected[i], letters)
        texts += [mark_difference(_cut(answer[i], letters), expected) for answer in self.answers.values()]
        cells = (f"{i}<br>{kind}", pictures, *texts)
        return f"<tr>{''.join(f'<td {_CELL}>{cell}</td>' for cell in cells)}</tr>"


def mark_difference(answer, expected):
    """The answer as HTML in which the words that are not as expected stand out, and a caret where some are missing."""
    words, wanted = (re.findall(r"\w+|\W", text) for text in (answer, expected))
    parts = []
    for kind, _, _, start, end in difflib.SequenceMatcher(None, wanted, words, autojunk=False).get_opcodes():
        text = html.escape("".join(words[start:end]))
        parts.append(text if kind == "equal" else f'<mark style="background:#d9534f55">{text or "‸"}</mark>')
    return "".join(parts)


def _cut(text, letters):
    return text if letters is None or len(text) <= letters else text[:letters] + "…"


def _prompt(messages):
    """The text of the last user turn, or nothing where there is none."""
    return next((message_text(message) for message in reversed(messages) if message["role"] == "user"), "")
