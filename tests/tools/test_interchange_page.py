"""The made parts of docs/interchange.md, and what makes them."""

import json

import interchange_page
import pytest
import run_interchange as tool
import torch


def test_the_tables_of_keys_are_up_to_date():
    assert interchange_page.main(["--check"]) == 0


def test_a_key_that_is_not_in_the_page_is_noticed(tmp_path, monkeypatch, capsys):
    page = tmp_path / "interchange.md"
    text = interchange_page.PAGE.read_text(encoding="utf-8")
    page.write_text(text.replace("| `lora_rank` |", "| `lora_tier` |", 1), encoding="utf-8")
    monkeypatch.setattr(interchange_page, "PAGE", page)
    assert interchange_page.main(["--check"]) == 1 and "run python" in capsys.readouterr().out
    assert interchange_page.main([]) == 0 and page.read_text(encoding="utf-8") == text
    page.write_text("nothing")
    with pytest.raises(ValueError, match="has no part between"):
        interchange_page.main([])


def test_what_was_run_names_every_run_of_both_programs():
    text = interchange_page.PAGE.read_text(encoding="utf-8")
    for name, lacks in tool.LACKS.items():
        outcome = interchange_page.section_of(text, interchange_page.OUTCOMES, name)[1]
        runs = [run for run, (method, _) in tool.RUNS.items() if method not in lacks]
        assert [run for run in runs if f"| {run} |" not in outcome] == []
        assert "Its SFT adapter" in outcome and "Our SFT adapter" in outcome


def test_the_loss_of_a_method_is_that_of_its_formula():
    sums, counts = torch.tensor([-4.0, -6.0, -8.0, -8.0]), torch.tensor([2, 4, 4, 4])
    config = type("Config", (), {"method": "dpo", "beta": None, "nll_coef": None, "simpo_gamma": None})
    assert tool.loss_of("sft", config, sums, counts, False) == pytest.approx(26 / 14)
    assert tool.loss_of("dpo", config, sums, counts, True) == pytest.approx(0.693147 + (2 + 1.5) / 2)
    assert tool.loss_of("dpo", config, sums, counts, False) == pytest.approx(0.693147 + 10 / 6)


def test_logs_and_sequences_of_the_programs(tmp_path):
    (tmp_path / "log").write_text('{"epoch": 0}\n{"loss": 1.5}\n{"loss": 1.0}\n')
    assert tool.first_loss(tmp_path / "log") == 1.5
    assert tool.last_error("a\nTraceback\n  x\nlib.OddError: no\nbye") == "lib.OddError: no"
    row = {"chosen_input_ids": [1], "chosen_labels": [1], "rejected_input_ids": [2], "rejected_labels": [2]}
    (tmp_path / "rows").write_text(json.dumps([row]))
    assert tool.their_sequences(tmp_path / "rows", "dpo") == [([1], [1]), ([2], [2])]
    assert tool.their_sequences(tmp_path / "rows", "kto") == [([1], [1])]
