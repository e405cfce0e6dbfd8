"""The second half of the described families goes through every check."""

from bases import DESCRIBED
from cases import conformance

test_conformance = conformance([*DESCRIBED][1::2])
