"""The first half of the described families goes through every check.

A family that is added to `FAMILIES` is among them: `pytest tests/families -k internvl` runs one.
"""

from bases import DESCRIBED
from cases import conformance

test_conformance = conformance([*DESCRIBED][::2])
