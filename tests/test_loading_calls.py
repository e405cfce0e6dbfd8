"""No call that loads a model, processor or configuration may run, or ask to run, code that lies beside the weights."""

import ast
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = [path for folder in ("vlmhelpers", "tools", "benchmarks") for path in sorted((ROOT / folder).rglob("*.py"))]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
LOADING = {"from_pretrained", "from_config", "pipeline"}
# They have no way to other code: peft's own weights, and one class of tokenizers, which transformers itself has.
HARMLESS = {"PeftModel", "PreTrainedTokenizerFast"}


def code_of(path):
    """The code of a module, or of all cells of a notebook without what only IPython reads."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        return text
    cells = [cell["source"] for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    return "\n".join(re.sub(r"^(\s*)[%!].*", r"\1pass", line.rstrip("\n")) for cell in cells for line in cell)


def unsafe_calls(code):
    """The lines of the calls that load something without `trust_remote_code=False`."""
    found = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Call):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            owner = getattr(getattr(node.func, "value", None), "id", "")
            safe = any(
                keyword.arg == "trust_remote_code"
                and isinstance(keyword.value, ast.Constant)
                and keyword.value.value is False
                for keyword in node.keywords
            )
            if name in LOADING and owner not in HARMLESS and not safe:
                found.append(node.lineno)
    return found


@pytest.mark.parametrize("path", [*SOURCES, *NOTEBOOKS], ids=lambda path: path.relative_to(ROOT).as_posix())
def test_nothing_is_loaded_with_code_of_others(path):
    assert not unsafe_calls(code_of(path)), "pass trust_remote_code=False"


def test_calls_are_found():
    code = "A.from_pretrained(x)\nA.from_config(x, trust_remote_code=False)\npipeline('a', trust_remote_code=True)\n"
    assert unsafe_calls(code + "PeftModel.from_pretrained(m, x)\nt.A.from_pretrained(f(), **options)") == [1, 3, 5]
