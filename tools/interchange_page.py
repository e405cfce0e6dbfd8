"""The parts of docs/interchange.md that are made: the tables of keys, and what the programs did with our files.

python tools/interchange_page.py            rewrite the tables of keys
python tools/interchange_page.py --check    only say whether they are up to date (exit code 1 when they are not)
"""

import argparse
import re
import sys
from pathlib import Path

from vlmhelpers.common.files import atomic_file
from vlmhelpers.interchange.llama_factory import LLAMA_FACTORY
from vlmhelpers.interchange.swift import SWIFT

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "interchange.md"
KEYS, OUTCOMES = "keys", "outcome"


def section_of(text: str, kind: str, name: str) -> re.Match:
    """The part of the page between two markers."""
    start, end = f"<!-- {kind} {name}: start -->", f"<!-- {kind} {name}: end -->"
    found = re.search(f"{re.escape(start)}\n(.*?){re.escape(end)}", text, re.DOTALL)
    if not found:
        raise ValueError(f"{PAGE} has no part between {start} and {end}")
    return found


def write_section(kind: str, name: str, lines: list[str]) -> None:
    """Replaces that part."""
    text = PAGE.read_text(encoding="utf-8")
    found = section_of(text, kind, name)
    with atomic_file(PAGE, encoding="utf-8", newline="\n") as file:
        file.write(text[: found.start(1)] + "\n".join(lines) + "\n" + text[found.end(1) :])


def key_lines(program) -> list[str]:
    """The table of a program's keys, and those without a counterpart."""
    lines = ["| key | setting here | |", "| --- | --- | --- |"]
    for key in program.keys:
        settings = ", ".join(f"`{name}`" for name in key.settings)
        lines.append(f"| `{key.name}` | {settings} | {key.note.replace('|', chr(92) + '|')} |")
    lines += ["", "Without a counterpart, and named when a file has them:", ""]
    reasons = {}
    for name, reason in program.without.items():
        reasons.setdefault(reason, []).append(f"`{name}`")
    return [*lines, *(f"- {', '.join(names)}: {reason}" for reason, names in reasons.items())]


def main(arguments: list[str] | None = None) -> int:
    """Writes or checks the tables of keys."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing")
    options = parser.parse_args(arguments)
    old = False
    for program in (LLAMA_FACTORY, SWIFT):
        lines = key_lines(program)
        old |= section_of(PAGE.read_text(encoding="utf-8"), KEYS, program.name)[1] != "\n".join(lines) + "\n"
        if not options.check:
            write_section(KEYS, program.name, lines)
    if old and options.check:
        print("docs/interchange.md: run python tools/interchange_page.py")
    return int(old and options.check)


if __name__ == "__main__":
    sys.exit(main())
