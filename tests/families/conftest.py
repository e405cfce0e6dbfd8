"""What the checks of all families share: each tiny model, loaded once per worker."""

import functools
import gc
from unittest.mock import patch

import pytest

pytest.register_assert_rewrite("checks")

from bases import load_base  # noqa: E402 (only now, as it may import checks)

from vlmhelpers.models import template_trial  # noqa: E402


@pytest.fixture(scope="session")
def load(tmp_path_factory):
    """Gives the `Base` of that name, the same in every call."""
    gc.collect()
    gc.freeze()  # what is imported: each of hundreds of collections would go through it
    return functools.cache(functools.partial(load_base, scratch=tmp_path_factory.mktemp("families")))


@pytest.fixture
def base(request, load):
    """The tiny model of a parametrized name."""
    with patch.object(template_trial, "_trial", return_value=None):  # a process each, for templates that are ours
        yield load(request.param)


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """For the configurations that tell of which model a processor is."""
    return tmp_path_factory.mktemp("processors")
