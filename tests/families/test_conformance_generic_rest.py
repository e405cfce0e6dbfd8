"""A third of the architectures that no family describes go through the checks that they can pass without one."""

from bases import GENERIC
from cases import conformance

test_conformance = conformance([*GENERIC][2::3])
