"""Writes the table of notebooks, with what each proves and the values it recorded, into README.md.

    python tools/readme_tables.py            rewrite the part between the markers
    python tools/readme_tables.py --check    only say whether it is up to date (exit code 1 when it is not)

The first image of a cell tagged "readme-picture" becomes docs/result.png.

A notebook's title is its first heading; what it proves is the value that it records under the name "proves".
A unit at the end of a record's name is shown behind the value: `training_seconds` = 71.3 becomes
"training 71.3 s".
"""

import argparse
import base64
import json
import re
import sys
from pathlib import Path

from vlmhelpers.common.records import read_records

ROOT = Path(__file__).resolve().parent.parent
START, END = "<!-- results:start -->", "<!-- results:end -->"
EMPTY = f"# Notebooks\n\n{START}\n{END}\n"
UNITS = {"percent": "%", "seconds": "s", "minutes": "min", "mb": "MB", "gb": "GB", "points": "points", "dollars": "$"}


def find_notebooks(folder):
    """The numbered notebooks of a folder, in order."""
    return sorted(Path(folder).glob("[0-9][0-9]_*.ipynb"))


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


def table(notebooks):
    """The Markdown table: one row per notebook."""
    lines = ["| Notebook | What it proves | Recorded in its last run |", "| --- | --- | --- |"]
    for notebook in notebooks:
        records = read_records(notebook)
        proves = records.pop("proves", "")
        values = "<br>".join(" ".join(readable(name, value)) for name, value in records.items())
        link = f"[{title_of(notebook)}]({notebook.parent.name}/{notebook.name})"
        lines.append("| " + " | ".join(_cell(text) for text in (link, proves, values)) + " |")
    return "\n".join(lines)


def _cell(text):
    return re.sub(r"\s+", " ", str(text)).replace("|", r"\|")


def updated(text, notebooks):
    """README's text with the table in it. Raises ValueError when the markers are missing."""
    before, start, rest = text.partition(START)
    _, end, after = rest.partition(END)
    if not start or not end:
        raise ValueError(f"README.md needs the lines {START} and {END}: the table goes between them")
    return f"{before}{START}\n{table(notebooks)}\n{END}{after}"


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


def main(arguments=None):
    parser = argparse.ArgumentParser(description="Write the notebooks' recorded values into README.md.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if out of date")
    parser.add_argument("--folder", type=Path, default=ROOT / "notebooks", help="where the notebooks are")
    options = parser.parse_args(arguments)
    readme = options.folder.resolve().parent / "README.md"
    notebooks = find_notebooks(options.folder)
    old = readme.read_text(encoding="utf-8") if readme.is_file() else EMPTY
    new = updated(old, notebooks)
    image, shown = readme.parent / "docs" / "result.png", image_of(notebooks)
    same_image = shown is None or (image.is_file() and image.read_bytes() == shown)
    if readme.is_file() and old == new and same_image:
        print("README.md: the table of results is up to date")
        return 0
    if options.check:
        print("README.md: the table of results is out of date; run `python tools/readme_tables.py`")
        return 1
    readme.write_text(new, encoding="utf-8")
    if shown is not None:
        image.parent.mkdir(exist_ok=True)
        image.write_bytes(shown)
    print("README.md: wrote the table of results")
    return 0


if __name__ == "__main__":
    sys.exit(main())
