"""The reward model: the logit of an answer's end token, whoever asks for it, and what it learns from pairs."""

import json

import pytest
import torch
from datasets import Dataset
from short_runs import ASKED, adapters, arguments, changed, make_pairs, make_prompts, weights
from torch.nn.functional import logsigmoid
from trl.data_utils import prepare_multimodal_messages

from vlmhelpers.batches import PreferenceCollator, VisionCollator
from vlmhelpers.data.schema import PAIR_FEATURES, make_pair
from vlmhelpers.families import TINY_BASES
from vlmhelpers.samples.drawing import sample_products
from vlmhelpers.training.methods import RewardConfig, RewardModel, RewardTrainer, sampled_prompts
from vlmhelpers.training.methods.reward import SCALE, answer_rewards

BLACK, WHITE = (image for _, image in sample_products(2, "rewarded", 48))
LONG = "This is a red striped bag with two handles, which is for sale for 20 dollars."
PAIRS = Dataset.from_list(
    [
        make_pair(ASKED, "A red bag.", LONG, [BLACK]),
        make_pair("What do you see in these two pictures?", "Bags.", "No.", [BLACK, WHITE]),
        make_pair("And here?", LONG, "A hat.", [WHITE]),
    ],
    features=PAIR_FEATURES,
)


def by_hand(model, processor, row, side):
    """The reward of one answer, computed alone: the answer's last label is its end token."""
    batch = VisionCollator(processor)([{"messages": [*row["prompt"], *row[side]], "images": row["images"]}])
    labels = batch.pop("labels")[0]
    end = (labels >= 0).nonzero().flatten()[-1]
    return model(**batch).logits[0, end, labels[end]].item()


@pytest.mark.parametrize("family", TINY_BASES)
def test_a_reward_is_the_logit_of_the_end_token_where_it_stands(tiny, family):
    model, processor = tiny(family)
    with torch.no_grad():
        expected = torch.tensor(
            [[by_hand(model, processor, row, side) for row in PAIRS] for side in ("chosen", "rejected")]
        )
        for logits in ("all", "labeled"):
            batch = PreferenceCollator(processor, logits=logits)(list(PAIRS))
            torch.testing.assert_close(answer_rewards(model, batch).view(2, 3), expected, atol=1e-3, rtol=1e-4)
    ranked = RewardModel(model.train(), processor, batch_size=2).rank(PAIRS)
    torch.testing.assert_close(ranked, expected, atol=1e-3, rtol=1e-4)
    assert model.training and not ranked.requires_grad and expected.std() > 0.01


def called(reward, processor, dataset, texts):
    """The rewards of `texts` as TRL's trainers ask for them: images in the prompts, and all columns of the rows."""
    rows = [sampled_prompts(dataset, processor)[i] for i in range(len(texts))]
    columns = {name: [row[name] for row in rows] for name in rows[0] if name != "prompt"}
    return reward(
        prompts=[prepare_multimodal_messages(row["prompt"], row["images"]) for row in rows],
        completions=[[{"role": "assistant", "content": text}] for text in texts],
        completion_ids=[[1]] * len(texts),
        trainer_state=None,
        **columns,
    )


@pytest.mark.parametrize("family", TINY_BASES)
def test_called_by_a_trainer_it_gives_what_it_ranks_by(tiny, family):
    model, processor = tiny(family)
    reward = RewardModel(model, processor, batch_size=2)
    prompts = make_prompts(3)
    texts = ["A red bag.", LONG, "No."]
    pairs = [make_pair(ASKED, text, "No.", row["images"]) for row, text in zip(prompts, texts, strict=True)]
    expected = reward.rank(Dataset.from_list(pairs, features=PAIR_FEATURES))[0].tolist()
    assert called(reward, processor, prompts, texts) == pytest.approx(expected, abs=1e-3)
    reward.mean, reward.std = 2.0, 4.0
    standardized = [(value - 2) / 4 for value in expected]
    assert called(reward, processor, prompts, texts) == pytest.approx(standardized, abs=1e-3)


def test_an_empty_completion_gets_the_lowest_reward(tiny):
    model, processor = tiny("qwen3-vl")
    reward = RewardModel(model, processor)
    found = called(reward, processor, make_prompts(4), [" \n", "A red bag.", "", LONG])
    assert found[0] == found[2] == min(found[1], found[3]) != max(found)
    assert found[1::2] == called(reward, processor, make_prompts(4).select([1, 3]), ["A red bag.", LONG])
    assert called(reward, processor, make_prompts(1), [""]) == [0.0]


def test_without_images_it_reads_the_texts_alone(tiny):
    model, processor = tiny("qwen3-vl")
    reward, completions = RewardModel(model, processor), [[{"role": "assistant", "content": "A red bag."}]]
    question = [{"role": "user", "content": [{"type": "text", "text": ASKED}]}]
    pair = make_pair(ASKED, "A red bag.", "No.", [])
    expected = [by_hand(model, processor, pair, "chosen")]
    for images in ({}, {"images": None}, {"images": [None]}, {"images": [[]]}):
        assert reward([question], completions, **images) == pytest.approx(expected, abs=1e-3)


def test_standardized_rewards_have_mean_0_and_deviation_1(tiny):
    reward = RewardModel(*tiny("qwen3-vl"))
    raw = reward.rank(PAIRS)
    for _ in range(2):  # the second time nothing changes
        assert reward.standardize(PAIRS) is reward
        found = reward.rank(PAIRS)
        assert found.mean().item() == pytest.approx(0, abs=1e-5) and found.std().item() == pytest.approx(1, abs=1e-5)
    torch.testing.assert_close(found, (raw - raw.mean()) / raw.std())


def test_a_scale_is_kept_beside_the_model(tiny, tmp_path):
    reward = RewardModel(*tiny("qwen3-vl"))
    assert reward.load_scale(tmp_path) is reward and (reward.mean, reward.std) == (0, 1)  # there is none
    reward.mean, reward.std = -3.5, 0.25
    reward.save_scale(tmp_path)
    other = RewardModel(reward.model, tiny("qwen3-vl")[1]).load_scale(tmp_path)
    assert (other.mean, other.std) == (-3.5, 0.25)


@pytest.mark.parametrize("scale", ['{"mean": 1, "std": 0}', '{"mean": NaN, "std": 1}', '{"mean": "1", "std": 1}', "{}"])
def test_a_scale_that_is_none_is_refused(tiny, tmp_path, scale):
    (tmp_path / SCALE).write_text(scale)
    with pytest.raises(ValueError, match=f"{SCALE} have mean .* a reward model tells answers apart"):
        RewardModel(*tiny("qwen3-vl")).load_scale(tmp_path)


def test_rewards_that_are_all_alike_are_refused(tiny):
    reward = RewardModel(*tiny("qwen3-vl"))
    torch.nn.init.zeros_(reward.model.get_output_embeddings().weight)
    with pytest.raises(ValueError, match="these pairs have mean 0.0 and standard deviation 0.0"):
        reward.standardize(PAIRS)


# Training


def make_trainer(base, output_dir, **changes):
    model, processor = base
    torch.manual_seed(0)
    return RewardTrainer(
        model=model,
        args=RewardConfig(**arguments(output_dir, **{"max_length": None} | changes)),
        train_dataset=make_pairs(240),
        data_collator=PreferenceCollator(processor),
        processing_class=processor,
        peft_config=adapters(model),
    )


@pytest.mark.slow
@pytest.mark.parametrize("coefficient", [None, 0.3])
def test_the_loss_is_bradley_and_terry_s(tiny, tmp_path, coefficient):
    trainer = make_trainer(tiny("qwen3-vl"), tmp_path, center_rewards_coefficient=coefficient)
    batch = trainer._prepare_inputs(trainer.data_collator(list(PAIRS)))
    with torch.no_grad():
        loss = trainer.compute_loss(trainer.model, batch).item()
    chosen, rejected = RewardModel(trainer.model, trainer.processing_class).rank(PAIRS)
    terms = -logsigmoid(chosen - rejected) + (coefficient or 0) * (chosen + rejected) ** 2
    assert loss == pytest.approx(terms.mean().item(), rel=1e-4)


@pytest.mark.slow
def test_a_short_training_ranks_held_out_pairs_right(tiny, tmp_path):
    changes = {"max_steps": 30, "per_device_train_batch_size": 8, "learning_rate": 2e-3, "logging_steps": 30}
    trainer = make_trainer(tiny("qwen3-vl"), tmp_path, **changes)
    held_out, before = make_pairs(24, "held out"), weights(trainer.model)

    def accuracy():
        chosen, rejected = RewardModel(trainer.model, trainer.processing_class, batch_size=24).rank(held_out)
        return (chosen > rejected).float().mean().item()

    at_first = accuracy()
    trainer.train()
    assert at_first < 0.7 and accuracy() > 0.9
    assert changed(trainer.model, before) == {name for name in before if "lora_" in name}

    trainer.save_model(tmp_path / "adapter")
    scale = json.loads((tmp_path / "adapter" / SCALE).read_text())
    rewards = RewardModel(trainer.model, trainer.processing_class).rank(trainer.train_dataset.select(range(0, 240, 3)))
    assert scale == pytest.approx({"mean": rewards.mean().item(), "std": rewards.std().item()}, abs=1e-3)
