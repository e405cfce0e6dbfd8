"""What the methods take, by estimates of single steps; a device's memory that a step alone takes."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from vlmhelpers.estimation.memory import GIB, Memory
from vlmhelpers.training import measuring, method_costs
from vlmhelpers.training.config import RunConfig


def test_every_method_has_its_row_and_every_model_its_columns(monkeypatch):
    def estimate(model_id, tokens, image_tokens, sequences, bits=4, full=False):
        assert (tokens, image_tokens) == (512, 256)
        weights = {"B": 100 if full else bits, "A": 2}[model_id[-1]]
        return Memory("", weights * GIB, GIB, GIB // 2, sequences * GIB, 0, 0, 0)

    monkeypatch.setattr(measuring, "estimate_memory", estimate)
    table = method_costs("some/Model-A", "some/B", tokens=512, image_tokens=256)
    assert list(table.columns)[3:] == ["Model-A, GiB", "Model-A fits on", "B, GiB", "B fits on"]
    peaks = dict(zip(table.index, table["B, GiB"].astype(float), strict=True))
    assert [peaks[f"SFT, {way}"] for way in ("full", "LoRA in 16 bits", "QLoRA")] == [102.5, 18.5, 6.5]
    assert (peaks["DPO"], peaks["GRPO"]) == (7.5, 13.5)
    assert peaks["PPO"] == 14  # a critic's adapter
    assert peaks["PPO, learned reward"] == 19  # and a second base, with the scales of its weights
    assert table.loc["SFT, full", "B fits on"] == "H200 141 GB"


def test_the_peak_on_a_gpu_leaves_out_what_was_there_before(monkeypatch):
    done = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 1000)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 1030 if done else 1000)
    assert measuring._allocated(lambda: done.append(True)) == 30


def test_trainings_are_judged_by_their_answers_to_the_same_rows(monkeypatch):
    monkeypatch.setattr(measuring, "generate", lambda model, processor, dataset, **options: [model, dataset, options])
    monkeypatch.setattr(measuring, "evaluate", lambda answers, dataset: f"{answers[0]} on {dataset}")
    monkeypatch.setattr(measuring, "keep_adapters_float32", lambda model: None)
    monkeypatch.setattr(measuring, "watch", lambda trainer, chart: None)
    trainer = SimpleNamespace(model="tuned", state=SimpleNamespace(log_history=[]))
    trainer.train = lambda: trainer.state.log_history.extend([{"step": 5, "loss": 2.0}, {"step": 9, "train_loss": 1.0}])
    compared = measuring.TrainingComparison("processor", "rows", batch_size=4)
    assert compared.add("base", "untuned") == "untuned on rows"
    assert compared.train("SFT", trainer) == "tuned on rows"
    assert compared.answers["SFT"] == ["tuned", "rows", {"batch_size": 4}]
    assert list(compared.evaluations) == ["base", "SFT"] and list(compared.seconds) == list(compared.logs) == ["SFT"]
    assert compared.logs["SFT"]["loss"].dropna().to_dict() == {5: 2.0} and compared.seconds["SFT"] >= 0


SAMPLED = {"weights": "full", "rewards": "exact_match"}


@pytest.mark.parametrize(
    ("settings", "last_layers", "reference"),
    [
        ({"weights": "full"}, None, False),
        ({"weights": "freeze"}, 1, False),
        ({"weights": "freeze", "last_layers": 3}, 3, False),
        ({"weights": "freeze", "method": "dpo"}, 1, True),
        ({"weights": "full", "method": "kto", "batch_size": 2}, None, True),
        ({"weights": "full", "method": "orpo"}, None, False),
        (SAMPLED | {"method": "grpo"}, None, False),
        (SAMPLED | {"method": "grpo", "beta": 0.1}, None, True),
        (SAMPLED | {"method": "rloo"}, None, True),
        (SAMPLED | {"method": "rloo", "beta": 0.0}, None, False),
    ],
)
def test_a_second_model_is_counted_where_one_is_held(settings, last_layers, reference):
    config = RunConfig(model_id="qwen3-vl", dataset="rows.jsonl", output_dir="out", **settings)
    full = settings["weights"] == "full"
    common = {"vision": False, "gradient_checkpointing": True}
    assert config.memory_options == common | {"full": full, "last_layers": last_layers, "reference": reference}
    assert replace(config, weights="lora", last_layers=None).memory_options == common | {"experts": False}
