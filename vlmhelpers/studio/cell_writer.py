"""Notebook cells from templates: what is filled in cannot leave its literal, and all is as a formatter leaves it."""

import ast
import re
import tokenize
from collections.abc import Mapping
from functools import cache
from io import StringIO
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

_LINE = 120
_EXPLODED = re.compile(r"^([^\n#]*[(\[{])\n((?: {4}.*\n)*)([)\]}].*)$", re.MULTILINE)
_IMPORTS = {  # module -> names that cells may need: first classes, then functions
    "math": "ceil gcd",
    "pathlib": "Path",
    "datasets": "concatenate_datasets",
    "peft": "LoraConfig PeftConfig PeftModel",
    "transformers": "AutoProcessor set_seed",
    "trl": "DistillationConfig DistillationTrainer DPOConfig DPOTrainer GRPOConfig GRPOTrainer KTOConfig KTOTrainer "
    "RLOOConfig RLOOTrainer SFTConfig SFTTrainer",
    "vlmhelpers.training": "methods",
}
_STANDARD, _OURS = ("math", "pathlib"), ("vlmhelpers.training",)


class Code(str):
    """What a template writes as it is; every other value becomes a literal."""


def write_cells(template: str, names: Mapping[str, object]) -> list[str]:
    """The cells of a template of this folder's `cells`, in which `# %%` begins each, and a second one of imports."""
    cells = re.split(r"^# %%\n", _environment().get_template(template).render(names), flags=re.MULTILINE)
    first, *others = [_EXPLODED.sub(_close_up, cell.strip()) for cell in cells[1:]]
    return [first, _imports("\n".join(others)), *others]


@cache
def _environment():
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).with_name("cells")),
        undefined=StrictUndefined,
        finalize=lambda value: value if isinstance(value, Code) else literal(value),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["code"] = Code
    return environment


def literal(value: object) -> str:
    """A value as Python reads it; a text is in double quotes, unless it holds more of them than of single ones."""
    if isinstance(value, list):
        return f"[{', '.join(map(literal, value))}]"
    if not isinstance(value, str):
        return repr(value)
    body = repr("'\"" + value)[4:-1]  # with both quotes in it, it is in single ones, and only these are escaped
    if value.count('"') > value.count("'"):
        return f"'{body}'"
    return '"{}"'.format(body.replace("\\'", "'").replace('"', '\\"'))


def _close_up(match):
    """Brackets whose lines fit into one, or into one between the two, are closed up."""
    head, body, tail = match.groups()
    if any(token.type == tokenize.COMMENT for token in tokenize.generate_tokens(StringIO(match[0]).readline)):
        return match[0]
    inside = " ".join(line.strip() for line in body.splitlines()).removesuffix(",")
    if len(head + inside + tail) <= _LINE:
        return head + inside + tail
    if head.endswith("(") and len(inside) + 4 <= _LINE:
        return f"{head}\n    {inside}\n{tail}"
    return match[0]


def _imports(code):
    """The cell that imports what the others name."""
    used = {node.id for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Name)}
    found = {module: [name for name in names.split() if name in used] for module, names in _IMPORTS.items()}
    lines = {module: f"from {module} import {', '.join(names)}" for module, names in found.items() if names}
    standard, ours = ([lines.pop(module) for module in group if module in lines] for group in (_STANDARD, _OURS))
    return "\n\n".join("\n".join(group) for group in (standard, ["import torch", *lines.values()], ours) if group)
