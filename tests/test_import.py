"""`import vlmhelpers` is cheap, and every public name is there."""

import pkgutil
import subprocess
import sys

import pytest

import vlmhelpers

IMPORT = """
import sys, time
started = time.perf_counter()
import vlmhelpers
print(time.perf_counter() - started)
print(*sys.modules)
"""
HEAVY = {"torch", "transformers", "datasets", "numpy", "PIL", "pyarrow", "matplotlib", "IPython"}


def fresh_import():
    """Seconds that the import took in a new process, and the modules loaded after it."""
    run = subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True, check=True)
    seconds, modules = run.stdout.splitlines()
    return float(seconds), set(modules.split())


def test_import_loads_nothing_heavy():
    _, modules = fresh_import()
    assert "vlmhelpers" in modules
    assert not HEAVY & modules


def test_import_takes_under_a_fifth_of_a_second():
    assert min(fresh_import()[0] for _ in range(3)) < 0.2  # the best of three: the machine may be busy


@pytest.mark.parametrize("name", vlmhelpers.__all__)
def test_public_name_resolves(name):
    value = getattr(vlmhelpers, name)
    assert callable(value)
    assert value.__doc__


def test_public_names_are_offered_for_completion():
    assert set(vlmhelpers.__all__) <= set(dir(vlmhelpers))


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'read_xml'"):
        vlmhelpers.read_xml  # noqa: B018


def test_no_public_name_is_a_module_too():
    """Else what the name stands for would depend on which of the two was loaded last."""
    modules = {module.name for module in pkgutil.iter_modules(vlmhelpers.__path__)}
    assert not modules & set(vlmhelpers.__all__)
