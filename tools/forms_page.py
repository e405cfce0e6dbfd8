"""Writes the table of forms of data into docs/data-forms.md and README.md, between their markers.

python tools/forms_page.py           rewrite the tables
python tools/forms_page.py --check   only say whether they are those of `readers/forms.py` (exit code 1 when not)
"""

import argparse
import re
import sys
from pathlib import Path

from vlmhelpers.common.files import atomic_file
from vlmhelpers.data.readers.forms import FORMS

ROOT = Path(__file__).resolve().parent.parent
PAGES = {ROOT / "docs" / "data-forms.md": True, ROOT / "README.md": False}  # page -> whether it tells all
_BETWEEN = re.compile(r"(<!-- forms:start -->\n).*?(<!-- forms:end -->)", re.DOTALL)


def table(in_full: bool) -> str:
    """The table in Markdown; in README without what is refused, and without samples."""
    heads = ["form", "what is read", "where images stand", *(["refused by name", "samples"] if in_full else [])]
    lines = [heads, ["---"] * len(heads)]
    for form in FORMS:
        name = f"[{form.name}]({form.documentation})" if form.documentation else form.name
        samples = (
            ", ".join(f"[{sample}](../tests/data/forms/{sample})" for sample in form.samples) or "built by the tests"
        )
        lines.append([name, form.holds, form.images, *([form.refused, samples] if in_full else [])])
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def rewritten(page: Path, in_full: bool) -> str:
    """The text of a page with the table of today."""
    return _BETWEEN.sub(lambda found: found[1] + table(in_full) + found[2], page.read_text(encoding="utf-8"))


def main() -> int:
    """Rewrites the pages; with --check, 1 where one would change."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing")
    check = parser.parse_args().check
    old = [page for page, in_full in PAGES.items() if rewritten(page, in_full) != page.read_text(encoding="utf-8")]
    for page in old:
        print(f"{page.relative_to(ROOT)}: {'not the table of forms.py' if check else 'rewritten'}")
        if not check:
            text = rewritten(page, PAGES[page])
            with atomic_file(page, encoding="utf-8") as file:
                file.write(text)
    return int(check and bool(old))


if __name__ == "__main__":
    sys.exit(main())
