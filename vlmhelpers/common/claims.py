"""What a notebook claims: shown and recorded with whether it holds, then asserted."""

from typing import Any

from vlmhelpers.common.display import Html, html_table
from vlmhelpers.common.printable import one_line
from vlmhelpers.common.records import record

CLAIMS = "claims"  # the name of the record


def check_claims(
    of_sample: dict[str, bool | None], of_any: dict[str, bool | None] | None = None, is_sample: bool = True
) -> None:
    """Shows each claim with whether it holds, records that under "claims", then asserts those that are asked.

    `of_any` holds claims about any model and data, which are always asked. Those of `of_sample` are asked with
    `is_sample` only: they are about the sample on the tiny model. A value says whether the claim holds; None: what
    would show it was not run. Raises AssertionError that names the claims asked and not met, TypeError for a value
    that is neither a bool nor None.
    """
    asked = dict.fromkeys(of_sample, is_sample) | dict.fromkeys(of_any or {}, True)
    holds = {claim: _holds(claim, value) for claim, value in {**of_sample, **(of_any or {})}.items()}
    verdicts = {claim: _verdict(value, asked[claim]) for claim, value in holds.items()}
    record(CLAIMS, verdicts, shown=_table(verdicts))
    if wrong := [claim for claim, verdict in verdicts.items() if verdict == "not met"]:
        raise AssertionError("\n".join([f"{len(wrong)} of {len(verdicts)} claims not met:", *wrong]))


def _holds(claim: str, value: Any) -> bool | None:
    value = value.item() if hasattr(value, "item") else value  # a NumPy or torch scalar
    if value is not None and not isinstance(value, bool):
        raise TypeError(f"claim {claim!r}: pass True, False or None, not {value!r}")
    return value


def _verdict(holds, asked):
    if holds is None:
        return "not run"
    if asked:
        return "met" if holds else "not met"
    return f"not asked of this model ({'holds' if holds else 'does not hold'})"


def _table(verdicts):
    lines = [one_line(f"{claim}: {verdict}") for claim, verdict in verdicts.items()]
    return Html(html_table(("claim", "verdict"), verdicts.items()), "\n".join(lines))
