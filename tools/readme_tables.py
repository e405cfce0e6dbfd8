"""Writes what the notebooks recorded: a table with a few figures of each into README.md, all into docs/results.md.

    python tools/readme_tables.py            rewrite the part between README's markers, and docs/results.md
    python tools/readme_tables.py --check    only say whether they are up to date (exit code 1 when they are not)

The first image of a cell tagged "readme-picture" becomes docs/result.png.

A notebook's title is its first heading; what it proves is the value that it records under the name "proves". Its
figures in README are the records that its record "headline" names, at most five; without one, the first five. A unit at
the end of a record's name is shown behind the value: `training_seconds` = 71.3 becomes "training 71.3 s".
"""

import argparse
import base64
import json
import re
import sys
from pathlib import Path

from vlmhelpers.common.claims import CLAIMS
from vlmhelpers.common.records import read_records

ROOT = Path(__file__).resolve().parent.parent
START, END = "<!-- results:start -->", "<!-- results:end -->"
MOST_FIGURES = 5  # of a notebook in README
EMPTY = f"# Notebooks\n\n{START}\n{END}\n"
MORE = "All figures, and what each notebook asserts of itself: [docs/results.md](docs/results.md)."
PAGE = (
    "# Results\n\nWhat every notebook recorded, and whether its claims held, when `make notebooks` last ran: "
    "with the tiny models, on a CPU. It shows that the methods work, not how good the real models are."
)
UNITS = {"percent": "%", "seconds": "s", "minutes": "min", "mb": "MB", "gb": "GB", "gib": "GiB", "points": "points"}
UNITS |= {"dollars": "$"}


def find_notebooks(folder):
    """The notebooks of a folder: the numbered ones in order, then the others."""
    return sorted(Path(folder).glob("*.ipynb"), key=lambda path: (not path.name[:2].isdigit(), path.name))


def title_of(notebook):
    """The first heading of a notebook, without its number signs; the file's name where there is none."""
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        heading = re.search(r"^#+ +(.+)$", "".join(cell["source"]), re.MULTILINE)
        if cell["cell_type"] == "markdown" and heading:
            return heading.group(1).strip()
    return notebook.stem


def readable(name, value):
    """A record as a label and a text for humans: ("train_seconds", 71.26) gives ("train", "71.3 s")."""
    words = name.split("_")
    unit = UNITS.get(words[-1]) if len(words) > 1 else None
    if unit is None:
        return " ".join(words), _text(value)
    return " ".join(words[:-1]), f"{_text(value)} {unit}"


def _text(value):
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float) and abs(value) < 1000:
        return f"{value:.3g}"
    if isinstance(value, (int, float)):
        return f"{value:,.0f}"
    if isinstance(value, list):
        return ", ".join(_text(item) for item in value)
    if isinstance(value, dict):
        return ", ".join(f"{key} {_text(item)}" for key, item in value.items())
    return value


def figures(records):
    """The records that are measured values."""
    return {name: value for name, value in records.items() if name not in ("proves", "headline", CLAIMS)}


def headline(notebook, records):
    """The figures of a notebook that README shows. Raises ValueError for names that do not fit."""
    found = figures(records)
    names = records.get("headline", list(found)[:MOST_FIGURES])
    if unknown := [str(name) for name in names if name not in found]:
        raise ValueError(f"{notebook.name}: its headline names {', '.join(unknown)}, which it does not record")
    if len(names) > MOST_FIGURES:
        raise ValueError(f"{notebook.name}: its headline names {len(names)} figures; choose {MOST_FIGURES} of them")
    return {name: found[name] for name in names}


def table(notebooks):
    """The Markdown table: one row per notebook."""
    rows = []
    for notebook in notebooks:
        records = read_records(notebook)
        values = "<br>".join(" ".join(readable(*figure)) for figure in headline(notebook, records).items())
        link = f"[{title_of(notebook)}]({notebook.parent.name}/{notebook.name})"
        rows.append((link, records.get("proves", ""), values))
    return _markdown(("Notebook", "What it proves", "Recorded in its last run"), rows)


def all_results(notebooks):
    """The page with every figure and every claim of each notebook."""
    parts = [PAGE]
    for notebook in notebooks:
        records = read_records(notebook)
        parts.append(f"## [{title_of(notebook)}](../{notebook.parent.name}/{notebook.name})")
        if found := figures(records):
            parts.append(_markdown(("Figure", "Value"), [readable(*figure) for figure in found.items()]))
        if claims := records.get(CLAIMS):
            parts.append(_markdown(("Claim", "Verdict"), claims.items()))
    return "\n\n".join(parts) + "\n"


def _markdown(heads, rows):
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)


def _cell(text):
    return re.sub(r"\s+", " ", str(text)).replace("|", r"\|")


def updated(text, notebooks):
    """README's text with the table in it. Raises ValueError when the markers are missing."""
    before, start, rest = text.partition(START)
    _, end, after = rest.partition(END)
    if not start or not end:
        raise ValueError(f"README.md needs the lines {START} and {END}: the table goes between them")
    return f"{before}{START}\n{table(notebooks)}\n\n{MORE}\n{END}{after}"


def image_of(notebooks):
    """The bytes of the image that README shows, or None: the output of the first cell tagged for it."""
    for notebook in notebooks:
        for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
            if "readme-picture" in cell["metadata"].get("tags", []):
                found = [
                    output["data"]["image/png"] for output in cell["outputs"] if "image/png" in output.get("data", {})
                ]
                return base64.b64decode("".join(found[0])) if found else None
    return None


def wanted(notebooks, root):
    """What belongs into each generated file below `root`, by path: a text, or the bytes of an image."""
    readme = root / "README.md"
    old = readme.read_text(encoding="utf-8") if readme.is_file() else EMPTY
    files = {readme: updated(old, notebooks), root / "docs" / "results.md": all_results(notebooks)}
    image = image_of(notebooks)
    return files if image is None else files | {root / "docs" / "result.png": image}


def is_current(path, content):
    """Whether the file holds that already."""
    if not path.is_file():
        return False
    return content == (path.read_text(encoding="utf-8") if isinstance(content, str) else path.read_bytes())


def main(arguments=None):
    parser = argparse.ArgumentParser(description="Write the notebooks' recorded values into README.md and docs/.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if out of date")
    parser.add_argument("--folder", type=Path, default=ROOT / "notebooks", help="where the notebooks are")
    options = parser.parse_args(arguments)
    files = wanted(find_notebooks(options.folder), options.folder.resolve().parent)
    stale = [path for path, content in files.items() if not is_current(path, content)]
    names = ", ".join(path.name for path in stale)
    if not stale:
        print("README.md and docs/: the recorded results are up to date")
    elif options.check:
        print(f"{names}: the recorded results are out of date; run `python tools/readme_tables.py`")
        return 1
    else:
        for path in stale:
            path.parent.mkdir(exist_ok=True)
            content = files[path]
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        print(f"{names}: wrote the recorded results")
    return 0


if __name__ == "__main__":
    sys.exit(main())
