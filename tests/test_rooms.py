"""What holds for every room, seen without running it. Which room may import which is checked by `make lint`."""

import ast
import pkgutil
import re

import pytest
from public_names import PACKAGE, ROOMS, folder_of, names_of

# Names of model families and of their classes; llama.cpp, LLaMA-Factory and Ollama are programs.
FAMILY = re.compile(
    r"qwen|(?<!o)llama(?!.?(?:cpp|factory))|phi.?3|gemma|llava|idefics|internvl|smolvlm|pixtral", re.IGNORECASE
)
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if PACKAGE / "families" not in path.parents)


@pytest.mark.parametrize("package", ["vlmhelpers", *ROOMS])
def test_no_public_name_is_a_module_too(package):
    """Else what the name stands for would depend on which of the two was loaded last."""
    modules = {module.name for module in pkgutil.iter_modules([str(folder_of(package))])}
    assert not modules & set(names_of(package))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_only_families_name_a_model_family(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = [f"line {line}: {text!r}" for line, text in names_and_texts(tree) if FAMILY.search(text)]
    assert not found, f"move what differs from one family to another into families/: {', '.join(found)}"


def test_identifiers_and_texts_are_searched_and_docstrings_are_not():
    source = "from qwen import *\ndef f(phi3):\n    'about llama'\n    return x.Gemma, 'llava', f'{ollama} llama.cpp'"
    found = {text for _, text in names_and_texts(ast.parse(source)) if FAMILY.search(text)}
    assert found == {"qwen", "phi3", "Gemma", "llava"}


def names_and_texts(tree):
    """(line, text) of every identifier and of every string that is no docstring."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    docstrings = {
        id(node.body[0].value) for node in ast.walk(tree) if isinstance(node, documented) and has_docstring(node)
    }
    for node in ast.walk(tree):
        if id(node) not in docstrings:
            for _, value in ast.iter_fields(node):
                for text in value if isinstance(value, list) else [value]:
                    if isinstance(text, str):
                        yield getattr(node, "lineno", 0), text


def has_docstring(node):
    return ast.get_docstring(node, clean=False) is not None
