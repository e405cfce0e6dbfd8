"""A model card quotes what comes from data: its metadata, its code and its text say no more than they should."""

import ast
import re

import pytest
import yaml
from peft import LoraConfig

from vlmhelpers.evaluation.scoring import Evaluation
from vlmhelpers.evaluation.statistics import Score
from vlmhelpers.export.hub import adapter_card, merged_card, push

NAMES = {
    "quotes": """a"b'c\\""",
    "code": '"); import os; os.system("x") #',
    "lines": "a\n---\nlicense: mit\n# Another heading\n```\nb",
    "backticks": "```",
    "a table": "a | b |",
    "jinja": "{{ 7 * 7 }}{% raw %}",
    "HTML": "<script>alert(1)</script>",
    "YAML": "!!python/object:os.system {a: [b, *c]}",
    "controls": "a\x1b[31m\u202eb",
}


@pytest.fixture(params=NAMES.values(), ids=NAMES)
def name(request):
    return request.param


def parts_of(card):
    """The front matter as YAML reads it, the code, and the lines outside of blocks of code."""
    front, text = re.fullmatch(r"---\n(.*?)\n---\n(.*)", str(card), flags=re.S).groups()
    lines, blocks, fence = [], [], None
    for line in text.splitlines():
        found = re.match("`{3,}", line)
        if fence is None and found:
            fence = found[0]
            blocks.append([])
        elif fence and line.rstrip() == fence:
            fence = None
        else:
            (lines if fence is None else blocks[-1]).append(line)
    assert fence is None
    return yaml.safe_load(front), ["\n".join(block) for block in blocks], lines


def adapter_card_of(base, tmp_path):
    source = tmp_path / f"{base.replace('/', ' ')}.jsonl"
    source.write_text("{}")
    lora = LoraConfig(target_modules=base)
    evaluation = Evaluation({base: Score(0.5, 0.4, 0.6, 8)}, (True,), {})
    return adapter_card(base, lora, {"language": 5}, source=source, evaluations={"tuned": evaluation}), source.name


def check_code(code, base):
    """The code compiles, names the base and nothing else of it, and trusts no code of others."""
    calls = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)]
    names = {ast.unparse(call.func) for call in calls}
    loaded = ["AutoModelForImageTextToText.from_pretrained", "AutoProcessor.from_pretrained"]
    assert names - {"PeftModel.from_pretrained"} == set(loaded)
    for call in calls:
        if ast.unparse(call.func) in loaded:
            assert ("trust_remote_code", False) in [(k.arg, ast.literal_eval(k.value)) for k in call.keywords]
    return [call.args[0].value for call in calls if isinstance(call.args[0], ast.Constant)]


def test_an_adapters_card_quotes_names(name, tmp_path):
    card, source = adapter_card_of(name, tmp_path)
    data, (targets, code), lines = parts_of(card)
    result = data["model-index"][0]
    assert (data["base_model"], result["name"], "license" in data) == (name, f"Adapter for {name}", False)
    assert result["results"][0]["dataset"]["name"] == source
    assert result["results"][0]["metrics"][0]["name"] == name
    assert check_code(code, name) == [name]
    assert "\n" not in targets and not re.search("[\x1b\u202e]", card.text)
    assert [line for line in lines if line.startswith("#")][1:] == [
        "## What it was trained on", "## LoRA", "## Results", "## Versions that were installed", "## How to load it",
        "## Limits", "## License",
    ]  # fmt: skip
    assert not re.search(r"(?<!\\)<script", re.sub("`.*?`", "", "\n".join(lines)))
    (row,) = [line for line in lines if line.startswith("| ") and "50.0%" in line]
    assert len(re.findall(r"(?<!\\)\|", row)) == 6


def test_the_card_of_a_merged_model_quotes_them_and_has_our_code_alone(name, tmp_path):
    card, _ = adapter_card_of(name, tmp_path)
    for text in (str(card), str(card).replace("\n", "\r\n"), str(card).split("## Limits")[0], "---\na: b\n---\nNone."):
        (tmp_path / "README.md").write_bytes(text.encode())
        merged = merged_card(tmp_path, name)
        data, blocks, _ = parts_of(merged)
        assert data["library_name"] == "transformers" and check_code(blocks[-1], name) == []
        assert "PeftModel" not in merged.text


@pytest.mark.slow
@pytest.mark.parametrize("front", ["a: [", "- a", "a: !!bool x", "[" * 2_000, "1: 2"])
def test_a_card_that_cannot_be_read(front, tmp_path):
    (tmp_path / "README.md").write_text(f"---\n{front}\n---\nText")
    with pytest.warns(UserWarning, match="README.md cannot be read: .* short card"):
        assert "# Merged model of base" in str(merged_card(tmp_path, "base"))
    with pytest.raises(ValueError, match="README.md cannot be read"):
        push(tmp_path, "a/b")
