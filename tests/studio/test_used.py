"""Which settings a choice leaves without a use: those, of all choices, that a run would refuse or pass over."""

from itertools import product

import pytest

from vlmhelpers.studio.controls import make_controls
from vlmhelpers.studio.used import unused
from vlmhelpers.training.config import RunConfig
from vlmhelpers.training.methods.catalog import METHODS, OWN_SETTINGS

NEEDED = {"model_id": "qwen3-vl", "dataset": "rows.jsonl", "output_dir": "run"}


def of(**values):
    return unused({name: s.default for name, s in RunConfig.described().items()} | NEEDED | values)


@pytest.mark.parametrize("method, weights", [*product(METHODS, ("lora", "full", "freeze"))])
def test_no_shown_setting_is_refused_for_what_the_method_and_the_weights_are(method, weights):
    hidden = of(method=method, weights=weights)
    assert hidden.isdisjoint(NEEDED) and hidden <= set(RunConfig.described())
    assert set(OWN_SETTINGS) - hidden == set(METHODS[method].settings)
    changed = {"lora_dropout": 0.1, "use_rslora": True, "init_lora_weights": "gaussian", "mlp": False, "last_layers": 2}
    changed |= {"cache": "pixels", "beta": 0.1, "label_smoothing": 0.1, "simpo_gamma": 0.5, "nll_coef": 0.1}
    changed |= {"num_generations": 2, "temperature": 1.0, "critic_learning_rate": 1e-5, "bits": 4}
    changed |= {"rewards": "exact_match", "teacher": "qwen3-vl"}
    for name, value in changed.items():
        alone = NEEDED | {"method": method, "weights": weights, name: value}
        about = [text for text in RunConfig.problems(alone).values() if text.startswith(f"{name} ")]
        assert not about or name in hidden, (name, about)


def test_validation_rows_are_what_settings_of_validation_need():
    names = {"eval_steps", "early_stopping_patience", "load_best_model_at_end"}
    for nothing in ("", "0", 0, "none", " 0 "):
        assert names | {"sample_answers"} <= of(validation_rows=nothing, test_rows=nothing)
    assert names <= of(validation_rows=0, test_rows=3) and "sample_answers" not in of(test_rows=3)
    assert not names & of(validation_rows="few")  # which is to be mended first


def test_every_setting_has_a_control():
    form, gpu, folder = make_controls()
    assert list(form.fields) == list(RunConfig.described()) and {gpu.name, folder.name} == {"gpu", "data_folder"}
