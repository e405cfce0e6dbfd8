"""Runs the conformance suite, and writes what came out into docs/families.md and README.md, between their markers.

python tools/families_page.py           run it, some minutes, and rewrite the tables
python tools/families_page.py --check   run nothing, only say whether the pages fit the families and the known failures
                                        (exit code 1 when they do not)
"""

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "tests" / "families"
sys.path[:0] = [str(FOLDER), str(ROOT / "tests" / "helpers")]

from bases import DESCRIBED  # noqa: E402
from checks import CHECKS  # noqa: E402
from known_failures import KNOWN_FAILURES  # noqa: E402
from outcomes import ARCHITECTURES, FAILED, PASSED, all_cases, outcome_of  # noqa: E402

from vlmhelpers.common.files import atomic_file  # noqa: E402
from vlmhelpers.families import FAMILIES, PUBLISHED, family_of  # noqa: E402

PAGE, README = ROOT / "docs" / "families.md", ROOT / "README.md"
PARTS = ("checks", "outcomes", "architectures")
# What a family declares, and the check whose cell is a word where it declares that it does not do it.
DECLARED = {
    "mixed": "mixable",
    "packed": "packable",
    "pixels": "caches_pixels",
    "features": "caches_features",
    "cap": "has_pixel_cap",
}


class Supported(NamedTuple):
    """A line of README's table: a family, or a model type that none describes."""

    name: str
    models: str  # published names, where they are known here
    outcome: str


class Outcomes:
    """A plugin of pytest that keeps what came of every check: (name, check) -> cell."""

    def __init__(self):
        self.cells = {}

    def pytest_runtest_logreport(self, report):
        found = re.search(r"::test_conformance\[(.+)-(.+)\]$", report.nodeid)
        if found and (report.when == "call" or report.failed):
            cell = dict(report.user_properties).get("outcome", PASSED) if report.passed else FAILED
            self.cells[found.groups()] = PASSED if cell == "passed" else cell


def supported() -> Iterator[Supported]:
    """The lines of README's table, by the known failures, which the tests hold to be all there are."""
    for name, family in FAMILIES.items():
        models = ", ".join(model_id.rpartition("/")[2] for model_id in PUBLISHED if family_of(model_id) is family)
        failed = [check for base, check in KNOWN_FAILURES if base in DESCRIBED and _family_of_base(base) == name]
        yield Supported(name, models, f"all checks but {', '.join(failed)}" if failed else "all checks")
    for kind in ARCHITECTURES:
        if not (outcome := outcome_of(kind)).startswith("family"):
            yield Supported(kind, "", outcome)


def models_table() -> str:
    """README's table: a line for each family, and one for each thing that can come of the other model types."""
    lines = [*supported()]
    rows = [f"| {line.name} | {line.models} | {line.outcome} |" for line in lines if line.name in FAMILIES]
    for outcome, words in (("generic, passed", "all checks"), ("generic, failed", "not all checks"), ("refused", "")):
        names = [line.name for line in lines if line.name not in FAMILIES and line.outcome.startswith(outcome)]
        name = "no family of their own" if words else "refused, with the reason"
        rows.append(f"| *{name}* | {', '.join(names)} | {words} |")
    return "\n".join(["| family | models | passes |", "| --- | --- | --- |", *rows])


def _family_of_base(name):
    """A base is called as its family is, with a model type behind it where it is not the first."""
    return max((family for family in FAMILIES if f"{name}-".startswith(f"{family}-")), key=len)


def parts_of_page(cells) -> dict[str, str]:
    """What stands between the markers of the page, of the cell for each (name, check)."""

    def failures(name):
        return [check for check in CHECKS if cells.get((name, check)) == FAILED]

    rows = [f"| {name} | " + " | ".join(cells[name, check] for check in CHECKS) + " |" for name in DESCRIBED]
    failed = {}  # (name, reason) -> checks
    for name, check in (case for case in all_cases() if cells[case] == FAILED):
        reason = KNOWN_FAILURES.get((name, check), "not known yet")
        failed.setdefault((name.removeprefix("generic-"), reason), []).append(check)
    reasons = [f"- {name} ({', '.join(checks)}): {reason}." for (name, reason), checks in failed.items()]
    kinds = [f"| {kind} | {outcome_of(kind, failures)} |" for kind in ARCHITECTURES]
    promises = [f"| {check} | {test.__doc__.splitlines()[0]} |" for check, test in CHECKS.items()]
    return {
        "checks": "\n".join(["| check | what it holds |", "| --- | --- |", *promises]),
        "outcomes": "\n".join(["| | " + " | ".join(CHECKS) + " |", "| --- |" + " --- |" * len(CHECKS), *rows]),
        "architectures": "\n".join(["| model type | |", "| --- | --- |", *kinds, "", *reasons]).rstrip(),
    }


def replaced(page: str, parts: dict[str, str]) -> str:
    """The page with these parts."""
    for name, text in parts.items():
        before, _, rest = page.partition(f"<!-- {name}:start -->\n")
        page = f"{before}<!-- {name}:start -->\n{text}\n<!-- {name}:end -->{rest.partition(f'<!-- {name}:end -->')[2]}"
    return page


def read_cells(page: str) -> dict[tuple[str, str], str]:
    """(name, check) -> cell, of the table in the page, and of the failures of its list of architectures."""
    cells = {}
    for name, line in re.findall(r"^\| ([^|]+) \| (.+) \|$", _part(page, "outcomes"), re.MULTILINE):
        if name in DESCRIBED:
            cells |= {(name, check): cell for check, cell in zip(CHECKS, line.split(" | "), strict=False)}
    kinds = dict(re.findall(r"^\| (\S+) \| generic, (.+) \|$", _part(page, "architectures"), re.MULTILINE))
    for name, check in all_cases():
        if name not in DESCRIBED and (outcome := kinds.get(name.removeprefix("generic-"))):
            failed = outcome.removeprefix("failed: ").split(", ")
            cells[name, check] = FAILED if check in failed else PASSED
    return cells


def _part(page, name):
    return page.partition(f"<!-- {name}:start -->")[2].partition(f"<!-- {name}:end -->")[0]


def differences(page: str) -> list[str]:
    """In what the page does not fit the families, their declarations and the known failures, as sentences."""
    cells = read_cells(page)
    missing = [f"{name}, {check}: not in the page" for name, check in all_cases() if (name, check) not in cells]
    if missing:
        return missing
    wrong = [
        f"{name}, {check}: {cell}, and the failures that are known say otherwise"
        for (name, check), cell in cells.items()
        if (cell == FAILED) != ((name, check) in KNOWN_FAILURES)
    ]
    for name in DESCRIBED:
        family = FAMILIES[_family_of_base(name)]
        for check, field in DECLARED.items():
            if cells[name, check] != FAILED and (cells[name, check] == PASSED) != getattr(family, field):
                wrong.append(f"{name}, {check}: {cells[name, check]}, and {field} is {getattr(family, field)}")
    readme = README.read_text(encoding="utf-8")
    if replaced(page, parts_of_page(cells)) != page or replaced(readme, {"models": models_table()}) != readme:
        wrong.append("a page is written otherwise now")
    return wrong


def run(arguments: list[str]) -> dict[tuple[str, str], str]:
    """Every check of every base, by pytest in two processes."""
    outcomes = Outcomes()
    options = ["-q", "-n", "2", "--dist", "loadfile", "-W", "ignore", *arguments]
    pytest.main([*options, *map(str, sorted(FOLDER.glob("test_conformance*.py")))], plugins=[outcomes])
    return outcomes.cells


def main(arguments=None):
    parser = argparse.ArgumentParser(description="Write the outcome of the conformance suite into docs/families.md.")
    parser.add_argument("--check", action="store_true", help="run and write nothing; exit code 1 if out of date")
    options, more = parser.parse_known_args(arguments)
    old = PAGE.read_text(encoding="utf-8")
    if not options.check:
        cells = run(more)
        if missing := [case for case in all_cases() if case not in cells]:
            sys.exit(f"{len(missing)} checks did not run, such as {missing[0]}: nothing is written")
        readme = README.read_text(encoding="utf-8")
        parts = {PAGE: (old, parts_of_page(cells)), README: (readme, {"models": models_table()})}
        for path, (text, made) in parts.items():
            with atomic_file(path, encoding="utf-8") as file:
                file.write(replaced(text, made))
    found = differences(PAGE.read_text(encoding="utf-8"))
    print(*found, sep="\n")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
