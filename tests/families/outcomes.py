"""What the conformance suite says of every architecture that transformers maps, in the words of docs/families.md."""

from bases import DESCRIBED, GENERIC
from checks import CHECKS, OF_GENERIC
from known_failures import KNOWN_FAILURES
from other_families import REFUSED
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from vlmhelpers.families import FAMILIES

ARCHITECTURES = (*MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,)
PASSED, FAILED = "✓", "✗"  # cells of the table; others are what a family declares that it does not do


def expected_failures(name: str) -> list[str]:
    """The checks of a base that are known to fail, in their order."""
    return [check for check in CHECKS if (name, check) in KNOWN_FAILURES]


def outcome_of(kind: str, failures=expected_failures) -> str:
    """Of a model type: "family NAME", "generic, passed", "generic, failed: CHECK, ..." or "refused: REASON"."""
    for family in FAMILIES.values():
        if kind in family.model_types:
            return f"family {family.name}"
    if kind in REFUSED:
        return f"refused: {REFUSED[kind]}"
    failed = failures(f"generic-{kind}")
    return f"generic, failed: {', '.join(failed)}" if failed else "generic, passed"


def all_cases() -> list[tuple[str, str]]:
    """(name, check) of every test of the suite."""
    cases = [(name, check) for name in DESCRIBED for check in CHECKS]
    return cases + [(name, check) for name in GENERIC for check in OF_GENERIC]
