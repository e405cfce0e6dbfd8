"""What the tests with the published vocabularies share; each is skipped where its vocabulary is out of reach."""

import functools

import pytest
from real_vocabularies import BUILDERS, DATA, OutOfReach, data_file


@functools.cache
def _missing(family):
    """Why the vocabulary of a family is not here, or None."""
    try:
        data_file(DATA[family])
    except OutOfReach as error:
        return str(error)


@pytest.fixture(scope="session")
def reachable():
    """Skips a test of a family whose vocabulary is out of reach; gives the family's name back."""

    def check(family):
        if why := _missing(family):
            pytest.skip(f"not tried with the real vocabulary of {family}: {why}")
        return family

    return check


@pytest.fixture(scope="session")
def tokenizer_of(reachable):
    """Gives the tokenizer of a family, built from its vocabulary: the same in every call."""
    build = functools.cache(lambda family: BUILDERS[family]())
    return lambda family: build(reachable(family))
