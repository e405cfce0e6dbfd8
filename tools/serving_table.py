"""Writes the table of families and the programs that serve them into docs/serving.md, between its markers.

python tools/serving_table.py           rewrite it
python tools/serving_table.py --check   only say whether it is up to date (exit code 1 when it is not)
"""

import argparse
import sys
from pathlib import Path

from vlmhelpers.common.files import atomic_file
from vlmhelpers.export.serving import AGAINST
from vlmhelpers.families import FAMILIES

PAGE = Path(__file__).resolve().parent.parent / "docs" / "serving.md"
START, END = "<!-- servers:start -->", "<!-- servers:end -->"


def table():
    """The lines of the table."""
    yield "| | " + " | ".join([*AGAINST, "llama.cpp (GGUF)", "onnxruntime"]) + " |"
    yield "| --- |" + " --- |" * (len(AGAINST) + 2)
    for name, family in FAMILIES.items():
        cells = [_cell(getattr(family, field)) for field in AGAINST.values()]
        cells += ["yes" if family.gguf_architectures else "no", _cell(family.not_in_onnx)]
        yield f"| {name} | " + " | ".join(cells) + " |"


def _cell(reason):
    return f"no: {reason}" if reason else "yes"


def main(arguments=None):
    parser = argparse.ArgumentParser(description="Write the table of families and servers into docs/serving.md.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if out of date")
    options = parser.parse_args(arguments)
    old = PAGE.read_text(encoding="utf-8")
    before, _, rest = old.partition(START)
    lines = "\n".join(table())
    new = f"{before}{START}\n{lines}\n{END}{rest.partition(END)[2]}"
    if options.check:
        return int(new != old)
    with atomic_file(PAGE, encoding="utf-8") as file:
        file.write(new)
    return 0


if __name__ == "__main__":
    sys.exit(main())
