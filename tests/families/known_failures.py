"""Checks that are known to fail, and why: (name of a base, name of a check) -> the reason, for docs/families.md.

A test of one of these has to fail; one that passes again is an error, so that this list says no more than is true.
"""

KNOWN_FAILURES: dict[tuple[str, str], str] = {}
