"""Runs of every method from a file: what they train, what they leave, and that an interrupted one ends the same."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from compare_runs import distance
from peft import LoraConfig, get_peft_model
from several_processes import call, train_and_keep

from vlmhelpers.batches.collator import VisionCollator
from vlmhelpers.common.file_digests import read_digest
from vlmhelpers.data.schema import answer_of
from vlmhelpers.export.adapters import attach, merge, missing_files, save_adapter
from vlmhelpers.families import family_of, tiny_model
from vlmhelpers.inference.generation import generate
from vlmhelpers.models.loading import load_model
from vlmhelpers.models.lora import lora_targets
from vlmhelpers.samples.drawing import caption, sample_products
from vlmhelpers.training import callbacks, pipeline
from vlmhelpers.training.background import TrainingRun
from vlmhelpers.training.config import RunConfig
from vlmhelpers.training.methods.catalog import METHODS
from vlmhelpers.training.methods.reward import SCALE
from vlmhelpers.training.run import RunResult, load_held_out, read_rows, train

FAMILY, OTHER_FAMILY, QUESTION = "qwen3-vl", "phi-3-vision", "Describe this product."
VARIED = {"temperature": 3.0, "max_completion_length": 6, "rewards": "length_within:4"}  # rewards that differ
OF_METHOD = {
    "kto": {"validation_rows": 3},  # nine are left, of which batches of four leave one over
    "grpo": VARIED | {"num_generations": 4, "beta": 0.1, "validation_rows": 2},
    "rloo": VARIED | {"num_generations": 2},
    # It samples anew after four steps, which is an epoch.
    "ppo": VARIED | {"max_steps": 8, "save_steps": 4, "batch_size": 3, "validation_rows": 4, "learning_rate": 1e-2},
    "distillation": {"max_completion_length": 6},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with a JSONL file of each kind of rows, about 16 drawn products."""
    folder = tmp_path_factory.mktemp("rows")
    rows = {"messages": [], "pairs": [], "rated": [], "prompts": []}
    for number, (product, image) in enumerate(sample_products(16, "method runs", 32)):
        image.save(folder / f"{number}.png")
        shown, long = {"images": [f"{number}.png"]}, caption(product)
        short = long.partition(" for ")[0] + "."
        rows["messages"].append({"text": QUESTION, "image": f"{number}.png", "response": short})
        rows["pairs"].append({"prompt": QUESTION, "chosen": short, "rejected": long} | shown)
        rated = {"completion": short if number % 2 else long, "label": bool(number % 2)}
        rows["rated"].append({"prompt": QUESTION} | rated | shown)
        rows["prompts"].append({"prompt": QUESTION, "answer": short} | shown)
    for kind, of_kind in rows.items():
        (folder / f"{kind}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in of_kind))
    return folder


@pytest.fixture(scope="module")
def config_of(data, tmp_path_factory):
    """Makes the settings of a run of 4 steps by a method."""

    def make(method="sft", **changes):
        settings = {"model_id": FAMILY, "dataset": data / f"{METHODS[method].rows}.jsonl", "bits": 16, "lora_r": 4}
        settings |= {"max_steps": 4, "save_steps": 2, "logging_steps": 2, "batch_size": 4, "test_rows": 4}
        settings |= {"gradient_accumulation_steps": 1, "warmup_steps": 0, "backend": "transformers"}
        settings |= {"output_dir": tmp_path_factory.mktemp(method)} | OF_METHOD.get(method, {})
        return RunConfig(**settings | {"method": method} | changes)

    return make


@pytest.fixture(scope="module")
def other_model(config_of):
    """Trains a reward model or a teacher once, and gives its adapter's folder."""
    made = {}

    def train_once(method):
        if method not in made:
            of_family = {"model_id": OTHER_FAMILY} if method == "reward" else {}
            made[method] = train(config_of(method, learning_rate=1e-2, **of_family)).adapter
        return made[method]

    return train_once


@pytest.fixture
def trained(monkeypatch):
    """Trains, and gives the result with the trainer."""
    make, kept = pipeline.make_trainer, []

    def keep(*arguments):
        kept.append(make(*arguments))
        return kept[-1]

    monkeypatch.setattr(pipeline, "make_trainer", keep)
    return lambda config: (train(config), kept[-1])


def interrupt(config):
    """Leaves of a finished run what there was after half of its steps."""
    folder = Path(config.output_dir)
    for name in ("adapter", "model", "held_out", f"checkpoint-{config.max_steps}"):
        shutil.rmtree(folder / name, ignore_errors=True)
    (folder / "results.json").unlink()
    assert (folder / f"checkpoint-{config.max_steps // 2}").is_dir()


def logits(model, processor, rows):
    batch = VisionCollator(processor)(list(rows))
    batch.pop("labels")
    with torch.no_grad():
        return model.eval()(**batch, use_cache=False).logits


def changed(model):
    """The towers of the base's parameters that are not as they were, and whether an adapter has learned."""
    base = dict(load_model(tiny_model(FAMILY), 16, backend="transformers")[0].named_parameters())
    adapters, weights = set(), set()
    for name, parameter in model.named_parameters():
        plain = name.removeprefix("base_model.model.").replace(".base_layer", "")
        if plain in base:
            weights |= {plain} if not torch.equal(parameter, base[plain]) else set()
        elif ".lora_B." in name and parameter.any():
            adapters.add(name.rpartition(".lora_B.")[2].removesuffix(".weight"))
    return adapters, weights


def digest_of(result, name):
    return read_digest(Path(result.folder) / name)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_method_trains_its_adapter_and_goes_on_where_it_was_interrupted(method, config_of, other_model, trained):
    more = {"teacher": other_model("sft")} if method == "distillation" else {}
    more |= {"reward_model": other_model("reward")} if method in ("ppo", "rloo") else {}
    config = config_of(method, **more)
    result, trainer = trained(config)
    assert changed(trainer.model) == ({"default", "critic"} if method == "ppo" else {"default"}, set())
    assert result.adapter and result.model is None and result.rows["trained"] == 12 - config.validation_rows
    assert any("eval_loss" in entry for entry in result.history) == bool(config.validation_rows)
    assert not [path for path in Path(result.adapter).iterdir() if path.is_dir()]  # no critic, no reference
    held_out = load_held_out(config.output_dir)["test"]
    assert answer_of(held_out[0]).startswith("A") and " for " not in answer_of(held_out[0])

    base, processor = load_model(tiny_model(FAMILY), 16, backend="transformers")
    tuned = attach(base, result.adapter)
    assert torch.equal(logits(tuned, processor, held_out), logits(trainer.model, processor, held_out))

    if method == "kto":
        assert len(trainer.train_dataset) == 8
    if "reward_model" in more:
        reward, scale = trainer.reward_funcs[-1], json.loads((Path(more["reward_model"]) / SCALE).read_text())
        assert (reward.mean, reward.std) == (scale["mean"], scale["std"]) != (0, 1)
        assert family_of(reward.model).name == OTHER_FAMILY

    if method in ("simpo", "cpo"):  # of the same class as orpo
        return
    first = digest_of(result, "adapter_model.safetensors")
    if method == "reward":  # as notebooks add a card
        save_adapter(tuned, processor, result.adapter)
        assert train(config) == result
    interrupt(config)
    again, resumed = trained(config)
    assert again.steps == config.max_steps and digest_of(again, "adapter_model.safetensors") == first
    for (name, one), other in zip(trainer.model.named_parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other), name  # the critic's, too


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["full", "freeze"])
def test_weights_of_the_model_itself_are_saved_with_it(weights, config_of, trained, capsys):
    config = config_of(weights=weights)
    result, trainer = trained(config)
    adapters, names = changed(trainer.model)
    layers = {name.partition("layers.")[2].partition(".")[0] for name in names if "language_model.layers." in name}
    assert not adapters and not any("visual" in name for name in names)
    assert (len(layers) == 1) == (weights == "freeze") == (not any("embed_tokens" in name for name in names))
    assert result.adapter is None and missing_files(result.model) == [] and result == RunResult.read(config.output_dir)
    held_out = load_held_out(config.output_dir)["test"]
    loaded, processor = load_model(result.model, 16, backend="transformers")
    assert torch.equal(logits(loaded, processor, held_out), logits(trainer.model, processor, held_out))

    first = digest_of(result, "model.safetensors")
    assert train(config) == result and "is finished: 4 steps on 12 rows" in capsys.readouterr().out
    interrupt(config)
    assert digest_of(trained(config)[0], "model.safetensors") == first


@pytest.mark.slow
@pytest.mark.parametrize("method", ["full", "dpo", "reward", "grpo", "ppo"])
def test_the_weights_of_the_best_validation_are_kept(method, config_of, trained, monkeypatch, capsys):
    of_kind = {"weights": "full"} if method == "full" else {"method": method}
    steps = 8 if method == "ppo" else 4
    more = {"max_steps": steps, "eval_steps": steps // 2, "save_steps": 100, "validation_rows": 4, "sample_answers": 2}
    monkeypatch.setattr(callbacks, "_is_better", lambda metric, value, best: best is None)  # the first
    config = config_of(**OF_METHOD.get(method, {}) | of_kind | more | {"load_best_model_at_end": True})
    result, trainer = trained(config)
    kept = [
        Path(folder) / f"{'adapter_' * config.trains_adapters}model.safetensors"
        for folder in (result.folder, *(Path(config.output_dir) / f"checkpoint-{step}" for step in (steps // 2, steps)))
    ]
    first, best, last = map(read_digest, kept)
    assert (result.steps, result.best_step) == (steps, steps // 2) and first == best != last
    held_out = load_held_out(config.output_dir)["test"]
    loaded = load_model(result.model or tiny_model(FAMILY), 16, backend="transformers")
    tuned = loaded[0] if result.model else attach(loaded[0], result.adapter)
    assert torch.equal(logits(tuned, loaded[1], held_out), logits(trainer.model, loaded[1], held_out))
    metric = "eval_reward" if method in ("grpo", "ppo") else "eval_loss"
    assert trainer.state.best_metric == next(entry[metric] for entry in result.history if metric in entry)
    sampled = TrainingRun(config.output_dir).samples["answers"]
    assert list(sampled) == ([] if method == "reward" else [0, steps // 2, steps])
    assert ("no answers are sampled: a reward model" in capsys.readouterr().out) == (method == "reward")


VARIANTS = {
    "pissa": {"init_lora_weights": "pissa", "use_rslora": True},
    "olora": {"init_lora_weights": "olora"},
    "dora": {"use_dora": True, "lora_dropout": 0.1, "init_lora_weights": "gaussian"},
}


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_an_adapter_of_another_start_is_an_ordinary_one_in_the_end(variant, config_of, trained, tmp_path):
    config = config_of(**VARIANTS[variant])
    result, trainer = trained(config)
    held_out = load_held_out(config.output_dir)["test"]
    base, processor = load_model(tiny_model(FAMILY), 16, backend="transformers")
    before = logits(base, processor, held_out)
    found, expected = (
        logits(attach(base, result.adapter), processor, held_out),
        logits(trainer.model, processor, held_out),
    )
    assert (found - expected).abs().max() < 1e-3 < (expected - before).abs().max()
    merged, _ = load_model(merge(result.adapter, tmp_path / "merged", dtype=torch.float32), 16, backend="transformers")
    assert generate(merged, processor, held_out, progress=False) == generate(
        trainer.model, processor, held_out, progress=False
    )

    first = digest_of(result, "adapter_model.safetensors")
    interrupt(config)
    assert digest_of(trained(config)[0], "adapter_model.safetensors") == first


@pytest.mark.slow
def test_samples_that_were_not_used_up_before_an_interruption_are_drawn_anew(config_of):
    config = config_of("ppo", max_steps=4, save_steps=2, validation_rows=0)
    before = train(config)
    interrupt(config)
    again = train(config)
    assert again.steps == 4 and [entry.get("step") for entry in again.history] == [e["step"] for e in before.history]
    assert digest_of(again, "adapter_model.safetensors") != read_digest(
        Path(config.output_dir) / "checkpoint-2" / "adapter_model.safetensors"
    )


@pytest.mark.slow
def test_two_processes_learn_preferences_as_one_does_and_one_policy_with_one_critic(config_of, tmp_path):
    alone = train(config_of("dpo", loss="sigmoid"))
    both = [
        config_of("dpo", loss="sigmoid", batch_size=2),
        config_of("ppo", max_steps=4, validation_rows=0, gradient_checkpointing=True),
    ]
    codes, printed = call(tmp_path / "printed.txt", train_and_keep, both, tmp_path, processes=2)
    assert codes == [0, 0], printed[-3000:]
    assert distance(alone, RunResult.read(both[0].output_dir)) < 2e-3
    for one, other in zip(*(torch.load(tmp_path / f"{rank}.pt") for rank in range(2)), strict=True):
        assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    for role in ("default", "critic"):  # of the last, PPO's
        moved = [tensor for name, tensor in one.items() if f".lora_B.{role}." in name]
        assert len(moved) > 10 and any(tensor.any() for tensor in moved)


@pytest.mark.slow
def test_what_an_adapter_is_rewarded_by_belongs_to_its_run(config_of, other_model, tmp_path):
    shutil.copytree(other_model("reward"), tmp_path / "reward")
    config = config_of("rloo", reward_model=tmp_path / "reward", max_steps=2, save_steps=1)
    assert train(config).steps == 2
    with pytest.raises(ValueError, match="changed: rewards"):
        train(replace(config, rewards="length_within:5"))
    weights = tmp_path / "reward" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
    with pytest.raises(ValueError, match="changed: reward_model"):
        train(config)
    interrupt(config)
    with pytest.raises(ValueError, match="changed: reward 2"):
        train(config)


REFUSED = {
    "cross_attention_mask": {"method": "grpo", "model_id": "llama-3.2-vision"},
    "there is no reward 'exakt'": {"method": "rloo", "rewards": "exact_match; exakt"},
    "which holds no adapter and no model": {"method": "ppo", "reward_model": "nowhere"},
    "choose gradient_accumulation_steps=4 or batch_size=8": {"method": "grpo", "num_generations": 8, "batch_size": 2},
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_cannot_be_is_refused_before_a_model_is_loaded(message, config_of, monkeypatch):
    monkeypatch.setattr(pipeline, "load_model", None)
    with pytest.raises(ValueError, match=message):
        train(config_of(**REFUSED[message]))


@pytest.mark.slow
def test_a_teacher_with_other_tokens_is_refused(config_of):
    with pytest.raises(ValueError, match="to the teacher: choose one with the same vocabulary"):
        train(config_of("distillation", teacher=OTHER_FAMILY))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["grpo", "rloo", "ppo"])
def test_fewer_prompts_than_are_sampled_for_at_once_are_refused(method, config_of):
    with pytest.raises(ValueError, match="prompts are fewer than those that are sampled for at once: add some"):
        train(config_of(method, gradient_accumulation_steps=16))


def test_a_free_batch_takes_whole_groups_of_samples(config_of, data):
    config = config_of("grpo", num_generations=6, batch_size=4, gradient_accumulation_steps=None)
    rows = pipeline.load_rows(config, read_rows(config))
    filled = pipeline.fill_in(config, str(tiny_model(FAMILY)), rows.parts)
    assert (filled.batch_size, filled.gradient_accumulation_steps) == (4, 3)


@pytest.mark.slow
def test_the_card_of_an_adapter_counts_no_other_one_on_the_model(tiny, tmp_path):
    model, processor = tiny(FAMILY)
    lora = LoraConfig(r=4, target_modules=lora_targets(model))
    cards = []
    for others in ((), ("critic",)):
        tuned = get_peft_model(tiny(FAMILY)[0], lora)
        for name in others:
            tuned.add_adapter(name, lora)
        cards.append((save_adapter(tuned, processor, tmp_path / f"{len(others)}") / "README.md").read_text())
        assert not (tmp_path / f"{len(others)}" / "critic").exists()
    assert cards[0] == cards[1]
