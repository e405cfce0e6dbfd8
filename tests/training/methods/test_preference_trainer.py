"""ORPO, SimPO and CPO: TRL's formulas, and the loss and the gradients of a trainer against a plain computation."""

from types import SimpleNamespace

import pytest
import torch
from short_runs import adapters, arguments, changed, make_pairs, weights
from torch.nn.functional import logsigmoid
from transformers import TrainerCallback
from trl.experimental.cpo import CPOTrainer
from trl.experimental.orpo import ORPOTrainer

from vlmhelpers.batches import PreferenceCollator, VisionCollator
from vlmhelpers.training.methods import PreferenceConfig, PreferenceTrainer
from vlmhelpers.training.methods.preference import LOSSES, cpo_loss, orpo_loss, simpo_loss

# Formulas

CHOSEN = torch.tensor([-0.5, -2.0, -2e-6, -30.0, -0.01], requires_grad=True)  # the third: a probability of nearly 1
REJECTED = torch.tensor([-1.5, -0.3, -4.0, -3e-6, -0.02])


def assert_like_trl(loss, expected):
    torch.testing.assert_close(loss, expected)
    ours, theirs = (torch.autograd.grad(found.sum(), CHOSEN)[0] for found in (loss, expected))
    torch.testing.assert_close(ours, theirs)


def of_trl(**settings):
    return SimpleNamespace(accelerator=SimpleNamespace(device="cpu"), alpha=0.0, label_smoothing=0.0, **settings)


def test_orpo_is_trl_s():
    found = ORPOTrainer.odds_ratio_loss(of_trl(beta=0.3), CHOSEN, REJECTED)[0]
    assert_like_trl(orpo_loss(CHOSEN, REJECTED, 0.3), -found)  # TRL subtracts it from the likelihood's


@pytest.mark.parametrize("sides", [(0.0, -1.0), (-1.0, 0.0), (0.0, 0.0), (-1e-9, -1e-8)])
def test_orpo_of_a_probability_of_1_is_finite_and_learns(sides):
    chosen, rejected = (torch.tensor([side, -0.5], requires_grad=True) for side in sides)
    loss = orpo_loss(chosen, rejected, 0.3)
    gradients = torch.stack(torch.autograd.grad(loss.sum(), (chosen, rejected)))
    assert loss.isfinite().all() and gradients.isfinite().all()
    assert (gradients[0] < 0).all() and (gradients[1] > 0).all()  # the chosen one up, the rejected one down
    torch.testing.assert_close(loss[1], torch.tensor(0.3).mul(torch.tensor(2.0).log()))  # its neighbor, of even odds


def test_simpo_is_trl_s():
    trainer = of_trl(loss_type="simpo", beta=2.0, simpo_gamma=0.7)
    assert_like_trl(simpo_loss(CHOSEN, REJECTED, 2.0, 0.7), CPOTrainer.cpo_loss(trainer, CHOSEN, REJECTED)[0])


def test_cpo_is_trl_s():
    trainer = of_trl(loss_type="sigmoid", beta=0.3)
    assert_like_trl(cpo_loss(CHOSEN, REJECTED, 0.3), CPOTrainer.cpo_loss(trainer, CHOSEN, REJECTED)[0])


# Settings


def test_the_weight_of_the_likelihood_is_the_paper_s_unless_it_is_given(tmp_path):
    def weight(loss, **given):
        config = PreferenceConfig(tmp_path, use_cpu=True, bf16=False, preference_loss=loss, **given)
        return config.nll_coef

    assert [weight(loss) for loss in LOSSES] == [1, 0, 1]
    assert [weight(loss, nll_coef=0.25) for loss in LOSSES] == [0.25] * 3
    assert weight("orpo", nll_coef=0.0) == 0


def test_beta_is_what_suits_the_loss_unless_it_is_given(tmp_path):
    def beta(loss, **given):
        return PreferenceConfig(tmp_path, use_cpu=True, bf16=False, preference_loss=loss, **given).beta

    assert {loss: beta(loss) for loss in LOSSES} == {"orpo": 0.1, "simpo": 2.0, "cpo": 0.1}
    assert [beta(loss, beta=0.0) for loss in LOSSES] == [0.0] * 3
    assert PreferenceConfig(tmp_path, use_cpu=True, bf16=False).simpo_gamma == 1.0


def test_an_unknown_loss_is_refused(tmp_path):
    with pytest.raises(ValueError, match="^preference_loss='dpo': choose one of orpo, simpo, cpo$"):
        PreferenceConfig(tmp_path, preference_loss="dpo")


# The trainer

PAIRS = make_pairs(8)


@pytest.fixture
def trainer_of(tiny, tmp_path):
    """Makes a trainer of the tiny Qwen3-VL, whose adapters start the same every time."""

    def make(**changes):
        model, processor = tiny("qwen3-vl")
        torch.manual_seed(0)
        return PreferenceTrainer(
            model=model,
            args=PreferenceConfig(**arguments(tmp_path, **{"max_length": None} | changes)),
            train_dataset=PAIRS,
            eval_dataset=make_pairs(4, "evaluation"),
            data_collator=PreferenceCollator(processor, logits="labeled"),
            processing_class=processor,
            peft_config=adapters(model),
        )

    return make


def answer_logps(model, processor, row, side):
    """The log-probabilities of an answer's tokens, computed alone."""
    batch = VisionCollator(processor)([{"messages": [*row["prompt"], *row[side]], "images": row["images"]}])
    labels = batch.pop("labels")[0, 1:]
    logps = model(**batch).logits[0, :-1].log_softmax(dim=-1)
    return logps[torch.arange(len(labels)), labels][labels >= 0]


def by_hand(loss, beta, gamma, coefficient, chosen, rejected):
    """The loss of a batch from the log-probabilities of the tokens of its answers."""
    if loss == "cpo":
        terms = [beta * (c.sum() - r.sum()) for c, r in zip(chosen, rejected, strict=True)]
    elif loss == "simpo":
        terms = [beta * (c.mean() - r.mean()) - gamma for c, r in zip(chosen, rejected, strict=True)]
    else:  # the odds of c are p / (1 - p)
        odds = [[p.mean().double().exp() / (1 - p.mean().double().exp()) for p in side] for side in (chosen, rejected)]
        terms = [(c / r).log() for c, r in zip(*odds, strict=True)]
    scale = beta if loss == "orpo" else 1
    return scale * -logsigmoid(torch.stack(terms)).mean() - coefficient * torch.cat(chosen).mean()


@pytest.mark.slow
@pytest.mark.parametrize("loss", LOSSES)
def test_the_loss_of_a_batch_by_hand(trainer_of, loss):
    trainer = trainer_of(preference_loss=loss, beta=0.7, simpo_gamma=0.4, nll_coef=0.5)
    batch = trainer._prepare_inputs(trainer.data_collator([PAIRS[i] for i in range(4)]))
    with torch.no_grad():
        found = trainer.compute_loss(trainer.model, batch)
        logps = [
            [answer_logps(trainer.model, trainer.processing_class, PAIRS[i], side) for i in range(4)]
            for side in ("chosen", "rejected")
        ]
    assert found.item() == pytest.approx(by_hand(loss, 0.7, 0.4, 0.5, *logps).item(), rel=1e-4)
    of_answer = torch.sum if loss == "cpo" else torch.mean
    chosen, rejected = (0.7 * torch.stack([of_answer(p) for p in side]) for side in logps)
    logged = {name: values[-1] for name, values in trainer._metrics["train"].items()}
    assert logged["rewards/chosen"] == pytest.approx(chosen.mean().item(), rel=1e-4)
    assert logged["rewards/rejected"] == pytest.approx(rejected.mean().item(), rel=1e-4, abs=1e-6)
    assert logged["rewards/margins"] == pytest.approx((chosen - rejected).mean().item(), rel=1e-4)
    assert logged["rewards/accuracies"] == (chosen > rejected).float().mean()
    assert logged["nll_loss"] == pytest.approx(-torch.cat(logps[0]).mean().item(), rel=1e-4)


class Gradients(TrainerCallback):
    def on_pre_optimizer_step(self, *_, model, **__):
        self.found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.slow
@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_do_not_depend_on_how_a_batch_is_cut(trainer_of, loss):
    """The likelihood's term is a mean over the tokens of a part: the chosen answers are as long as each other here."""
    found = []
    for size, parts in ((8, 1), (4, 2)):
        trainer = trainer_of(
            preference_loss=loss, max_steps=1, per_device_train_batch_size=size, gradient_accumulation_steps=parts
        )
        trainer.add_callback(gradients := Gradients())
        trainer.train()
        found.append(gradients.found)
    mask = trainer.data_collator(list(PAIRS), ("chosen",))["completion_mask"]
    assert len(set(mask.sum(dim=1).tolist())) == 1
    assert sum(gradient.norm() > 0 for gradient in found[0].values()) > 10
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, atol=1e-5 * gradient.norm().item(), rtol=1e-3)


@pytest.mark.slow
def test_a_run_logs_the_losses_of_training_and_evaluation_and_changes_adapters_alone(trainer_of):
    trainer = trainer_of(eval_strategy="steps", eval_steps=3, max_steps=3)
    before = weights(trainer.model)
    trainer.train()
    assert changed(trainer.model, before) == {name for name in before if "lora_" in name}
    *steps, evaluation, _ = trainer.state.log_history
    figures = {"rewards/accuracies", "rewards/margins", "rewards/chosen", "rewards/rejected", "nll_loss"}
    assert all(step.keys() >= figures | {"loss"} for step in steps) and len(steps) == 3
    assert evaluation.keys() >= {f"eval_{name}" for name in figures} | {"eval_loss"}
    with torch.no_grad():
        batch = trainer._prepare_inputs(trainer.data_collator(list(trainer.eval_dataset)))
        expected = trainer.compute_loss(trainer.model.eval(), batch).item()
    assert evaluation["eval_loss"] == pytest.approx(expected, rel=1e-4)
