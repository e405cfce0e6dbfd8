"""The test that the files of the conformance suite share: a file stays in one worker, so there are several."""

import pytest
from bases import GENERIC
from checks import CHECKS, OF_GENERIC
from known_failures import KNOWN_FAILURES

SLOW = (
    "train",
    "estimate",
    "answers",
    "merge",
    "gemma-4-mixed",
)  # more than a second; so is all that no family describes, together


def cases(names) -> list:
    """A test of each check for each name."""
    return [_case(name, check) for name in names for check in (OF_GENERIC if name in GENERIC else CHECKS)]


def _case(name, check):
    marks = [pytest.mark.slow] if {check, f"{name}-{check}"} & {*SLOW} or name in GENERIC else []
    if reason := KNOWN_FAILURES.get((name, check)):
        marks.append(pytest.mark.xfail(reason=reason, strict=True, raises=(AssertionError, ValueError, RuntimeError)))
    return pytest.param(name, check, marks=marks, id=f"{name}-{check}")


def conformance(names):
    """The test of a file: `test_conformance = conformance(names)`."""

    @pytest.mark.parametrize(("base", "check"), cases(names), indirect=["base"])
    def test(base, check, record_property):
        record_property("outcome", CHECKS[check](base) or "passed")

    return test
