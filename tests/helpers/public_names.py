"""What the package's `__init__` files declare as public, read from their source: nothing is imported."""

import ast
import pkgutil
from pathlib import Path

import vlmhelpers

PACKAGE = Path(vlmhelpers.__file__).parent
ROOMS = [f"vlmhelpers.{module.name}" for module in pkgutil.iter_modules([str(PACKAGE)]) if module.ispkg]


def folder_of(package):
    return PACKAGE.joinpath(*package.split(".")[1:])


def names_of(package):
    """The public names of a package, but for its modules: those it loads lazily, or its `__all__`."""
    tree = ast.parse((folder_of(package) / "__init__.py").read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg == "submod_attrs":
            return sorted(name for names in ast.literal_eval(node.value).values() for name in names)
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return sorted(ast.literal_eval(node.value))
    raise ValueError(f"{package} lists no public names")
