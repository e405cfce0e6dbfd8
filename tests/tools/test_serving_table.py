"""docs/serving.md: its table is that of the families, and its Python runs as it stands."""

import re

import pytest
import serving_table

from vlmhelpers.export.model_server import serve_model
from vlmhelpers.families import FAMILIES, tiny_model

PAGE = serving_table.PAGE.read_text(encoding="utf-8")


def test_the_table_is_up_to_date(capsys):
    assert serving_table.main(["--check"]) == 0, "python tools/serving_table.py"


def test_a_reason_of_a_family_changes_the_table(monkeypatch):
    lines = list(serving_table.table())
    assert (
        len(lines) == 2 + len(FAMILIES) and sum("no: transformers itself has no phi3_v" in line for line in lines) == 1
    )
    monkeypatch.setitem(FAMILIES, "another", FAMILIES["qwen3-vl"])
    assert list(serving_table.table()) != lines and serving_table.main(["--check"]) == 1


@pytest.mark.slow
def test_the_python_of_the_page_runs_as_it_stands(tmp_path, monkeypatch, picture, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "merged").symlink_to(tiny_model("qwen3-vl"))
    picture.save("photo.png")
    blocks, names = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL), {}
    with serve_model("merged") as server:
        for block in blocks:
            exec(block.replace("http://127.0.0.1:8000/v1", server.base_url), names)
    printed = capsys.readouterr().out.splitlines()
    assert len(blocks) == 5 and printed[0] == "transformers serve merged --host 127.0.0.1 --port 8000"
    assert printed[1].startswith("vllm serve merged --served-model-name products")
    assert printed[2] and printed[3] and printed[4].strip() == printed[3].strip()
