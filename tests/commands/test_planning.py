"""The plan of a run: whether it fits, why not, and what would make it fit."""

from dataclasses import replace

import pytest

from vlmhelpers.commands import planning
from vlmhelpers.commands.planning import preflight
from vlmhelpers.estimation import planning as estimating
from vlmhelpers.estimation import suggestion
from vlmhelpers.estimation.memory import GIB, Gpu, Memory
from vlmhelpers.samples.sample_data import write_sample
from vlmhelpers.training.config import RunConfig

REAL = "Qwen/Qwen2.5-VL-7B-Instruct"


@pytest.fixture
def config(tmp_path):
    write_sample(tmp_path / "sample.jsonl", 24)
    return RunConfig(
        model_id="qwen2.5-vl", dataset=str(tmp_path / "sample.jsonl"), output_dir=str(tmp_path / "run"), test_rows=4
    )


@pytest.fixture(autouse=True)
def memory(monkeypatch):
    """Lets the weights take 5 GiB in 4 bits, 14 in 16, 100 trained, and 1 GiB for each row and image token in 100."""

    def estimate(model_id, tokens, image_tokens, batch_size=1, bits=4, gradient_checkpointing=True, **options):
        trained = options.get("full") or options.get("last_layers")
        gib = 100 if trained else {4: 5, 16: 14}[bits]
        gib += batch_size * (1 + image_tokens / 100) * (1 if gradient_checkpointing else 3)
        return Memory(f"{batch_size} rows", round(gib * GIB), 0, 0, 0, 0, 0, 10**15)

    for module in (planning, estimating, suggestion):
        monkeypatch.setattr(module, "estimate_memory", estimate)
    monkeypatch.setattr(suggestion, "estimate_answering", lambda *args, **kw: GIB)


def test_without_a_gpu_the_others_are_listed(config):
    plan = preflight(config)
    assert plan.fits is None and plan.gpu is None and plan.problems == plan.remedies == []
    assert plan.raise_if_too_large() is plan and plan.rows["trained"] == 20 and plan.config.batch_size == 16
    assert "T4 16 GB" in str(plan) and "Tokens per row" in str(plan) and "<table" in plan._repr_html_()


@pytest.mark.slow
def test_a_hub_id_stands_for_itself_on_a_gpu_that_is_named(config):
    plan = preflight(replace(config, model_id=REAL), "T4")
    assert plan.flight.model_id == REAL and plan.config.bits == 4 and plan.fits
    low, high = plan.seconds
    assert 0 < low < high and "Time there: " in str(plan)
    assert preflight(replace(config, model_id=REAL)).flight.model_id != REAL  # the tiny base, on this machine


def test_a_run_that_cannot_fit_is_refused_with_what_to_change(config, capsys):
    plan = preflight(replace(config, model_id=REAL, bits=16, batch_size=4, gradient_checkpointing=False), "T4")
    assert plan.fits is False and round(plan.peak / GIB) == 27
    together = "bits=4, batch_size=1, gradient_accumulation_steps=4, gradient_checkpointing=True"
    assert [remedy.partition(":")[0] for remedy in plan.remedies] == [together]  # none alone is enough
    with pytest.raises(ValueError, match=r"a step takes .* GiB, estimated, and T4 16 GB has 14.7; it would fit on"):
        plan.raise_if_too_large()
    assert "It cannot be trained so: " in str(plan) and "What would help: " in str(plan)


@pytest.mark.slow
def test_each_remedy_is_tried(config, monkeypatch):
    monkeypatch.setattr(planning, "find_gpu", lambda name: Gpu("small", 10))
    plan = preflight(replace(config, model_id=REAL, bits=4, batch_size=8, gradient_accumulation_steps=2), "small")
    assert plan.remedies == ["batch_size=2, gradient_accumulation_steps=8: 7.2 GiB"]
    whole = preflight(replace(config, model_id=REAL, weights="full", batch_size=1), "small")
    assert whole.remedies == ["weights=lora, bits=4: 6.1 GiB"]


def test_rows_that_are_too_long_are_a_problem_with_its_remedy(config):
    plan = preflight(replace(config, max_length=20))
    assert "such as row" in plan.problems[0] and "takes them all" in plan.problems[0]
    with pytest.raises(ValueError, match="are longer than max_length=20"):
        plan.raise_if_too_large()


def test_wrong_settings_and_gpus_are_errors(config):
    with pytest.raises(ValueError, match="choose one of T4"):
        preflight(config, "K80")
    with pytest.raises(FileNotFoundError):
        preflight(replace(config, dataset="gone.jsonl"))
