"""How much the tests here try: little and always the same in `make test`, for hours and always other in `make fuzz`."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.database import DirectoryBasedExampleDatabase

FOLDER = Path(__file__).parent
EXAMPLES = int(os.environ.get("VLMHELPERS_FUZZ", 0))  # of each test, in one round of tools/fuzz.py
COMMON = {"deadline": None, "suppress_health_check": list(HealthCheck)}

settings.register_profile("ci", max_examples=40, derandomize=True, database=None, **COMMON)
settings.register_profile(
    "long", max_examples=EXAMPLES or 1, database=DirectoryBasedExampleDatabase(".hypothesis"), print_blob=True, **COMMON
)
settings.load_profile("long" if EXAMPLES else "ci")


def pytest_collection_modifyitems(items):
    """All of them are slow: `make check` leaves them out."""
    for item in items:
        if FOLDER in item.path.parents:
            item.add_marker(pytest.mark.slow)
