"""PPO: advantages by hand, the critic's and the policy's gradients, and that nothing else is trained."""

import functools
from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from several_processes import call, launch_environment
from short_runs import adapters, changed, make_ppo, run_ppo, weights
from transformers import TrainerCallback
from trl import GRPOTrainer
from trl.trainer.utils import use_adapter

from vlmhelpers.models import keep_adapters_float32
from vlmhelpers.training.checkpoints import resume_from
from vlmhelpers.training.methods import PPOConfig, gae
from vlmhelpers.training.methods.ppo import CRITIC, POLICY

DDP = Path(__file__).parents[3] / "configs" / "ddp.yaml"

# Advantages

MASK = torch.tensor([[1.0, 1, 1], [1, 1, 0], [1, 0, 0]])
REWARDS = torch.tensor([[1.0, 2, 3], [1, -1, 7], [4, 5, 6]])  # what stands after the end counts for nothing
VALUES = torch.tensor([[0.5, 1, 2], [2, 0.5, 9], [1.5, 8, 8]])


def test_advantages_of_ragged_rows_by_hand():
    advantages, returns = gae(REWARDS, VALUES, MASK, gamma=0.9, lam=0.8)
    # Surprises, from the end: 3 - 2, 2 + .9 * 2 - 1, 1 + .9 * 1 - .5; each takes in .72 of the advantage after it.
    assert advantages.tolist() == [
        pytest.approx([1.4 + 0.72 * 3.52, 2.8 + 0.72 * 1, 1]),
        pytest.approx([-0.55 + 0.72 * -1.5, -1.5, 0]),
        pytest.approx([2.5, 0, 0]),
    ]
    assert returns.tolist() == [pytest.approx(row) for row in ([4.4344, 4.52, 3], [0.37, -1, 0], [4, 0, 0])]


def test_without_a_critic_and_discount_advantages_are_what_is_still_to_come():
    advantages, returns = gae(REWARDS, torch.zeros(3, 3), MASK, gamma=1, lam=1)
    assert torch.equal(advantages, torch.tensor([[6.0, 5, 3], [0, -1, 0], [4, 0, 0]]))
    assert torch.equal(returns, advantages)


def test_with_lambda_0_advantages_are_the_surprises():
    advantages, _ = gae(REWARDS, VALUES, MASK, gamma=0.5, lam=0)
    assert torch.equal(advantages, torch.tensor([[1.0, 2, 1], [-0.75, -1.5, 0], [2.5, 0, 0]]))


# Settings


def test_a_rollout_batch_of_one_update_is_refused(tmp_path):
    def config(**changes):
        return PPOConfig(str(tmp_path), use_cpu=True, bf16=False, **changes)

    for changes in ({"gradient_accumulation_steps": 4}, {"steps_per_generation": 1, "num_iterations": 1}):
        with pytest.raises(ValueError, match="one update only: raise steps_per_generation or num_iterations"):
            config(**changes)
    assert config(gradient_accumulation_steps=2).num_generations == 1


def test_processes_that_would_not_share_the_critic_s_gradients_are_refused(tmp_path):
    assert PPOConfig(str(tmp_path), use_cpu=True, bf16=False).ddp_find_unused_parameters
    for unused in (False, None):
        with pytest.raises(ValueError, match="ddp_find_unused_parameters has to be True"):
            PPOConfig(str(tmp_path), use_cpu=True, bf16=False, ddp_find_unused_parameters=unused)


# A run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(trainer after four updates and an evaluation, its weights before)."""
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 4, "critic_learning_rate": 2e-3}
    trainer = make_ppo(tmp_path_factory.mktemp("ppo"), **settings)
    before = weights(trainer.model)
    assert resume_from(trainer) is None
    trainer.train()
    trainer.evaluate()
    return trainer, before


def roles(names):
    """The names of weights that are trained, of the policy and of the critic."""
    policy = {name for name in names if f".{POLICY}." in name}
    critic = {name for name in names if f".{CRITIC}." in name}
    return policy, critic


@pytest.mark.slow
def test_policy_and_critic_are_trained_and_nothing_else(run):
    trainer, before = run
    policy, critic = roles(before)
    assert len(critic) == len(policy) + 2 and sum("value_head" in name for name in critic) == 2
    assert changed(trainer.model, before) == policy | critic


@pytest.mark.slow
def test_policy_and_critic_have_learning_rates_of_their_own(run):
    trainer, _ = run
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    rates = {names[id(p)]: group["lr"] for group in trainer.optimizer.param_groups for p in group["params"]}
    policy, critic = roles(names.values())
    assert rates == dict.fromkeys(policy, 1e-3) | dict.fromkeys(critic, 2e-3)


@pytest.mark.slow
def test_figures_are_logged_and_the_critic_comes_nearer(run):
    *steps, _, evaluation = run[0].state.log_history
    losses = [step["value_loss"] for step in steps]
    assert len(losses) == 4 and losses[3] < losses[0]
    assert steps[0]["kl"] == 0 and steps[0]["value_mean"] == 0 and steps[0]["explained_variance"] == pytest.approx(0)
    assert "frac_reward_zero_std" not in steps[0] and "kl" not in steps[1]  # of a rollout, with its first update
    assert steps[0]["return_std"] > 0 and all("policy_loss" in step for step in steps)
    assert {"eval_loss", "eval_reward", "eval_value_loss", "eval_kl"} <= evaluation.keys()


@pytest.mark.slow
def test_a_value_is_of_what_stands_before_its_token(run):
    trainer, _ = run
    trainer.model.eval()
    batch = trainer._generate_and_score_completions([trainer.eval_dataset[i] for i in range(3)])
    base = trainer.model.get_base_model()
    with torch.no_grad(), use_adapter(trainer.model, CRITIC):
        values = trainer._values(batch)
        names = [name for name in trainer.model_kwarg_keys if batch.get(name) is not None]
        states = base(
            input_ids=torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1),
            attention_mask=torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1),
            output_hidden_states=True,
            **{name: batch[name] for name in names},
        ).hidden_states[-1]
        asked = batch["prompt_ids"].shape[1]
        for i, length in enumerate(batch["completion_mask"].sum(dim=1).tolist()):
            expected = base.value_head(states[i, asked - 1 : asked - 1 + length]).squeeze(-1)
            torch.testing.assert_close(values[i, :length], expected)
            assert (values[i, length:] == 0).all() and expected.std() > 0
    assert torch.equal(values, batch["values"])
    assert torch.equal(batch["returns"] != 0, batch["completion_mask"].bool())


@pytest.mark.slow
def test_a_checkpoint_brings_back_policy_and_critic(run):
    trained, _ = run
    trainer = make_ppo(trained.args.output_dir, max_steps=5)
    folder = resume_from(trainer, accept_changes=True)
    assert folder.endswith("checkpoint-4")
    found = {}

    class Look(TrainerCallback):
        def on_train_begin(self, *_, **__):
            found.update(weights(trainer.model))

    trainer.add_callback(Look())
    trainer.train(resume_from_checkpoint=folder)
    expected = weights(trained.model)
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)
    assert trainer.state.global_step == 5 and changed(trainer.model, found) == set().union(*roles(expected))


# The KL penalty


@pytest.mark.slow
def test_the_penalty_is_in_the_reward_and_counts_once(tiny, tmp_path, monkeypatch):
    betas, loss = [], GRPOTrainer._compute_loss

    def spy(self, *args):
        betas.append(self.beta)
        return loss(self, *args)

    monkeypatch.setattr(GRPOTrainer, "_compute_loss", spy)
    trainer = make_ppo(tmp_path, tiny("qwen3-vl"), max_steps=1, beta=0.5)
    trainer.train()
    assert betas == [0] and trainer.beta == 0.5
    trainer._scores = torch.tensor([[10.0], [20.0]])
    logps = {
        "old_per_token_logps": torch.tensor([[-1.0, -2, -3], [-4, -5, -6]]),
        "ref_per_token_logps": torch.tensor([[-2.0, -2, -1], [-2, -5, -9]]),
    }
    rewards = trainer._token_rewards(logps, torch.tensor([[1.0, 1, 1], [1, 1, 0]]))
    assert rewards.tolist() == [[-0.5, 0, 10 + 1], [1, 20, 0]]  # -.5 nats a token, the score at the answer's end
    assert trainer._metrics_now["kl"][-1] == (1 - 2 + -2) / 2


@pytest.mark.slow
def test_without_a_penalty_no_reference_is_asked(tiny, tmp_path):
    trainer = make_ppo(tmp_path, tiny("qwen3-vl"), max_steps=3, beta=0.0)
    before = weights(trainer.model)
    trainer.train()
    policy, critic = roles(before)
    assert changed(trainer.model, before) == policy | critic
    assert not any("kl" in entry for entry in trainer.state.log_history)


# Other models


class Gradients(TrainerCallback):
    """Those of the first update, by name."""

    def __init__(self):
        self.found = {}

    def on_pre_optimizer_step(self, *_, model, **__):
        self.found = self.found or {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.slow
def test_gradients_are_the_same_with_gradient_checkpointing(tiny, tmp_path):
    """The layers run again in the backward pass, with the adapter that is active then."""
    found = []
    for checkpointing in (False, True):
        trainer = make_ppo(tmp_path, tiny("qwen3-vl"), max_steps=1, gradient_checkpointing=checkpointing)
        torch.nn.init.constant_(trainer.model.get_base_model().value_head.modules_to_save[CRITIC].weight, 0.1)
        trainer.add_callback(gradients := Gradients())
        trainer.train()
        assert trainer.model.get_base_model().is_gradient_checkpointing == checkpointing
        found.append(gradients.found)
    policy, critic = roles(weights(trainer.model))
    assert found[0].keys() == found[1].keys() == policy | critic
    for name, gradient in found[0].items():
        assert "lora_A" in name or gradient.norm() > 0, name  # lora_B is zero at first
        torch.testing.assert_close(found[1][name], gradient, atol=1e-7, rtol=1e-4)


@pytest.mark.slow
def test_a_model_in_4_bits(tiny, tmp_path):
    trainer = make_ppo(tmp_path, tiny("qwen3-vl", 4), max_steps=4)
    keep_adapters_float32(trainer.model)
    before = weights(trainer.model)
    trainer.train()
    policy, critic = roles(before)
    assert changed(trainer.model, before) == policy | critic


@pytest.mark.slow
def test_a_model_that_has_an_adapter_is_compared_with_what_it_was(tiny, tmp_path):
    model, processor = tiny("qwen3-vl")
    torch.manual_seed(1)
    model = get_peft_model(model, adapters(model))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    trainer = make_ppo(tmp_path, (model, processor), max_steps=4)
    before = weights(trainer.model)
    trainer.train()
    policy, critic = roles(before)
    assert any(".ref." in name for name in before) and changed(trainer.model, before) == policy | critic
    assert trainer.state.log_history[0]["kl"] == pytest.approx(0, abs=1e-4)


# Several processes


@pytest.mark.slow
def test_two_processes_learn_what_one_learns(tmp_path):
    """So cool a base is so sure of its answers that samples of a prompt are alike; an update takes a whole rollout."""
    settings = {"max_steps": 3, "gradient_accumulation_steps": 2, "temperature": 0.5}
    alone = tmp_path / "alone"
    alone.mkdir()
    run_ppo(alone, **settings, per_device_train_batch_size=8)
    half = functools.partial(run_ppo, **settings, per_device_train_batch_size=4)
    environment = launch_environment(DDP)
    codes, printed = call(tmp_path / "printed.txt", half, tmp_path, processes=2, environment=environment)
    assert codes == [0, 0], printed[-3000:]
    one, first, second = (torch.load(file) for file in (alone / "0.pt", tmp_path / "0.pt", tmp_path / "1.pt"))
    assert one.keys() == first.keys() == second.keys()
    for names in roles(one):
        assert len(names) > 10 and all(torch.equal(first[name], second[name]) for name in names)
        moved = sum(one[name].square().sum() for name in names if "lora_B" in name)  # they start at zero
        assert sum((one[name] - first[name]).square().sum() for name in names) < 1e-6 * moved
