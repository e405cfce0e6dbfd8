"""`import vlmhelpers` is cheap, and every public name of the package and of its rooms is there."""

import importlib
import inspect
import subprocess
import sys

import pytest
from public_names import ROOMS, names_of

import vlmhelpers

IMPORT = """
import sys, time
started = time.perf_counter()
import vlmhelpers
print(time.perf_counter() - started)
print(*sys.modules)
"""
HEAVY = {"torch", "transformers", "datasets", "numpy", "PIL", "pyarrow", "matplotlib", "IPython"}
PUBLIC = [f"{package}.{name}" for package in ("vlmhelpers", *ROOMS) for name in names_of(package)]


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


@pytest.mark.slow
def test_rooms_are_reached_without_importing_them():
    reach = [f"vlm.{room.partition('.')[2]}.__all__" for room in ROOMS] + ["vlm.evaluation.by_slice"]
    subprocess.run([sys.executable, "-c", "import vlmhelpers as vlm\n" + "\n".join(reach)], check=True)


@pytest.mark.parametrize("name", PUBLIC)
def test_public_name_resolves_and_is_documented(name):
    value = resolve(name)
    assert not callable(value) or value.__doc__


def resolve(name):
    package, _, name = name.rpartition(".")
    return getattr(importlib.import_module(package), name)


@pytest.mark.parametrize("name", PUBLIC)
def test_public_function_has_type_hints(name):
    function = resolve(name)
    if inspect.isfunction(function):
        signature = inspect.signature(function)
        bare = [
            parameter.name for parameter in signature.parameters.values() if parameter.annotation is parameter.empty
        ]
        assert not bare and signature.return_annotation is not signature.empty


def test_flat_names_are_callable():
    assert all(callable(getattr(vlmhelpers, name)) for name in names_of("vlmhelpers"))


@pytest.mark.parametrize("package", ["vlmhelpers", *ROOMS])
def test_public_names_are_offered_for_completion(package):
    assert set(names_of(package)) <= set(dir(importlib.import_module(package)))


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="No vlmhelpers attribute read_xml"):
        vlmhelpers.read_xml  # noqa: B018
