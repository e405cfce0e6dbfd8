"""Every method on every family that it is for: what it trains, what pairs teach, and what samplers are given."""

import copy
import io
from importlib import import_module

import pytest
import torch
from datasets import Dataset
from PIL import ExifTags, Image
from short_runs import ASKED, adapters, arguments, changed, make_pairs, make_prompts, weights
from trl.data_utils import prepare_multimodal_messages
from trl.trainer.utils import use_adapter

from vlmhelpers.batches import VisionCollator
from vlmhelpers.data import to_rows
from vlmhelpers.data.schema import PROMPT_FEATURES, RATED_FEATURES, make_prompt, make_rated, message_text, user
from vlmhelpers.families import TINY_BASES, family_of
from vlmhelpers.inference.likelihood import rank_pairs
from vlmhelpers.models import train_only
from vlmhelpers.training import RunConfig
from vlmhelpers.training.methods import RewardModel, sampled_prompts, sampling_processor
from vlmhelpers.training.methods.catalog import METHODS
from vlmhelpers.training.methods.parts import Parts

SAMPLING = ("qwen3-vl", "qwen2.5-vl", "phi-3-vision")  # TRL passes no cross-attention mask on, which Mllama needs
PREFERENCES = ("dpo", "kto", "orpo", "simpo", "cpo")
ALONE = {"dpo": {"loss": "sigmoid"}, "cpo": {"nll_coef": 0}}  # without the chosen answers' likelihood
SAMPLERS = ("grpo", "rloo", "ppo")
PAIRS = make_pairs(4)


def rated(pairs):
    rows = [
        make_rated(ASKED, message_text(row[side][0]), side == "chosen", row["images"])
        for row in pairs
        for side in ("chosen", "rejected")
    ]
    return Dataset.from_list(rows, features=RATED_FEATURES)


TEXTS = [make_prompt("Write 3 as a word.", "Three."), make_prompt("Hello", "Hi, what can I do for you?")]
ROWS = {
    "pairs": PAIRS,
    "rated": rated(PAIRS),
    "messages": to_rows(Dataset.from_list([*make_prompts(3), TEXTS[0]], features=PROMPT_FEATURES)),
    "prompts": Dataset.from_list([*make_prompts(12), *TEXTS * 2], features=PROMPT_FEATURES),
}


@pytest.fixture
def trainer_of(tiny, tmp_path):
    """Makes the trainer of a method as a run does; `own`: train the language model's own weights, without adapters."""

    def make(family, method, own=False, **settings):
        model, processor = tiny(family)
        if own:
            train_only(model, ["language", "head"])
        torch.manual_seed(0)
        parts = Parts(
            config=RunConfig(family, "rows.jsonl", tmp_path, method=method, **settings),
            arguments=arguments(tmp_path, max_steps=3, per_device_train_batch_size=8 if method in SAMPLERS else 4),
            model=model,
            processor=processor,
            lora=None if own else adapters(model),
            train=ROWS[METHODS[method].rows],
            validation=None,
            load_base=lambda name: (teacher(tiny(name)[0]) if method == "distillation" else tiny(name)[0], processor),
        )
        return import_module(f"vlmhelpers.training.methods.{METHODS[method].module}").make_trainer(parts)

    return make


def teacher(model):
    """A model that is less sure of the same answers."""
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(0.5)
    return model


# Answers that rows have


@pytest.mark.slow
@pytest.mark.parametrize("method", PREFERENCES)
@pytest.mark.parametrize("family", TINY_BASES)
def test_the_chosen_answers_become_likelier_than_the_rejected_ones(trainer_of, family, method):
    assert_prefers(trainer_of(family, method, **ALONE.get(method, {})))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dpo", "orpo"])
def test_the_model_s_own_weights_learn_it_too(trainer_of, method):
    assert_prefers(trainer_of("qwen2.5-vl", method, own=True))


def assert_prefers(trainer):
    """Three steps of the trainer make the better answers of its rows likelier, by all that is to be trained alone."""

    def margins():
        chosen, rejected = rank_pairs(trainer.model, trainer.processing_class, PAIRS)
        return chosen - rejected

    before, at_first = weights(trainer.model), margins()
    reference = getattr(trainer, "ref_model", None)
    of_reference = weights(reference) if reference else {}
    trainer.train()
    assert (margins() > at_first).all(), (at_first, margins())
    trained = {name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    assert len(trained) > 10 and changed(trainer.model, before) == trained
    assert not (reference and changed(reference, of_reference))


@pytest.mark.slow
@pytest.mark.parametrize("family", TINY_BASES)
def test_a_reward_model_learns_which_answers_are_better(trainer_of, family):
    trainer = trainer_of(family, "reward")
    before, reward = weights(trainer.model), RewardModel(trainer.model, trainer.processing_class)
    chosen, rejected = reward.rank(PAIRS)
    at_first = chosen - rejected
    trainer.train()
    chosen, rejected = reward.rank(PAIRS)
    assert (chosen - rejected > at_first).all()
    assert changed(trainer.model, before) == {name for name in before if "lora_" in name}


# Answers that the model samples


@pytest.mark.slow
@pytest.mark.parametrize("family", SAMPLING)
@pytest.mark.parametrize("method", SAMPLERS)
def test_samples_train_the_adapters_alone(trainer_of, family, method):
    """At such a temperature samples differ, and so do their rewards."""
    settings = {"temperature": 3.0, "max_completion_length": 8, "rewards": "length_within:4"}
    if method != "ppo":
        settings["num_generations"] = 2
    trainer = trainer_of(family, method, **settings)
    before = weights(trainer.model)
    trainer.train()
    assert changed(trainer.model, before) == {name for name in before if "lora_" in name or ".critic." in name}


@pytest.mark.slow
@pytest.mark.parametrize("family", SAMPLING)
def test_a_student_comes_nearer_to_its_teacher(trainer_of, family):
    trainer = trainer_of(family, "distillation", teacher=family, max_completion_length=8)
    before = weights(trainer.model)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 3 and losses[0] > losses[1] > losses[2] > 0  # of the same four prompts
    assert changed(trainer.model, before) == {name for name in before if "lora_" in name}


@pytest.mark.slow
@pytest.mark.parametrize("family", SAMPLING)
def test_samples_end_where_an_answer_ends(trainer_of, family):
    trainer = trainer_of(family, "ppo", max_completion_length=40, rewards="exact_match")
    trainer.model.eval()
    batch = trainer._generate_and_score_completions([trainer.train_dataset[i] for i in range(4)])
    labels = VisionCollator(trainer.processing_class)(list(to_rows(ROWS["prompts"].select([0]))))["labels"]
    for ids, mask in zip(batch["completion_ids"], batch["completion_mask"].bool(), strict=True):
        assert ids[mask][-1] == labels[labels >= 0][-1] and mask.sum() < 40
    assert trainer._metrics["eval"]["completions/clipped_ratio"] == [0]


@pytest.mark.slow
@pytest.mark.parametrize("family", SAMPLING)
def test_each_sample_keeps_its_own_images(trainer_of, family, monkeypatch, picture):
    """A rollout is cut into minibatches, whose rows have no, one or two images."""
    images = [row["images"][0] for row in make_prompts(6)]
    rows = [
        make_prompt(ASKED, "A bag.", images[:2]),
        make_prompt("Say a.", "A."),
        make_prompt(ASKED, "A hat.", images[2:3]),
    ]
    rows += [
        make_prompt("Compare them.", "No.", images[3:5]),
        make_prompt(ASKED, "Yes.", images[5:]),
        make_prompt("Hi", "Hi"),
    ]
    monkeypatch.setitem(ROWS, "prompts", Dataset.from_list(rows * 3, features=PROMPT_FEATURES))
    trainer = trainer_of(family, "ppo", max_completion_length=6, rewards="length_within:3")
    torch.nn.init.normal_(trainer.model.get_base_model().value_head.modules_to_save["critic"].weight)
    batch = trainer._generate_and_score_completions([trainer.train_dataset[i] for i in range(6)])
    for i, row in enumerate(rows):
        prompt = VisionCollator(trainer.processing_class).prompts(
            [{"messages": row["prompt"], "images": row["images"]}]
        )
        length = batch["completion_mask"][i].sum()
        answer = batch["completion_ids"][i : i + 1, :length]
        alone = dict(prompt) | {"prompt_ids": prompt["input_ids"], "prompt_mask": prompt["attention_mask"]}
        alone |= {"completion_ids": answer, "completion_mask": torch.ones_like(answer)}
        if "mm_token_type_ids" in alone:
            alone["mm_token_type_ids"] = torch.nn.functional.pad(alone["mm_token_type_ids"], (0, length))
        with torch.no_grad(), use_adapter(trainer.model, "critic"):
            torch.testing.assert_close(batch["values"][i, :length], trainer._values(alone)[0], atol=1e-3, rtol=1e-3)
    before = weights(trainer.model)
    trainer.train()
    assert changed(trainer.model, before) == {name for name in before if "lora_" in name or ".critic." in name}


# What samplers are given


@pytest.fixture(params=SAMPLING)
def processor(tiny, request):
    """With a token besides the special ones, as the tokenizers of published models have."""
    processor = copy.deepcopy(tiny(request.param)[1])
    processor.tokenizer.add_tokens(["<tool_call>"], special_tokens=False)
    return processor


def ids_of_trl(processor, row):
    """The prompt's tokens, as TRL's trainers make them of a row."""
    messages = prepare_multimodal_messages(row["prompt"], row["images"])
    options = {"add_generation_prompt": True, "tokenize": True, "return_dict": True}
    return processor.apply_chat_template(conversation=[messages], **options)["input_ids"][0]


def photo(picture):
    """A picture that lies on its side, as a camera stores it, and one that is partly transparent."""
    file, exif = io.BytesIO(), Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    picture.resize((96, 40)).save(file, "JPEG", exif=exif)
    clear = picture.convert("RGBA")
    clear.putalpha(100)
    return {"bytes": file.getvalue(), "path": None}, clear


def test_prompts_have_the_tokens_that_they_have_in_answering(processor, picture):
    special = processor.tokenizer.eos_token
    rotated, clear = photo(picture)
    system = {"role": "system", "content": [{"type": "text", "text": f"Be brief. {special}"}]}
    rows = [
        make_prompt(f"What is this {special} here, <|image_1|> or <image>?", "A bag.", [rotated]),
        make_prompt("<tool_call> Compare.", "No.", [clear, picture]),
        make_prompt("Say é.", "é"),
        {"prompt": [system, user("And this?", images=1)], "answer": "A bag.", "images": [picture]},
    ]
    prompts = sampled_prompts(Dataset.from_list(rows, features=PROMPT_FEATURES), processor)
    for row, given in zip(rows, prompts, strict=True):
        expected = VisionCollator(processor).prompts([{"messages": row["prompt"], "images": row["images"]}])
        assert ids_of_trl(sampling_processor(processor), given) == expected["input_ids"][0].tolist()
        assert given["answer"] == row["answer"]
    texts = [message_text(prompts[i]["prompt"][-1]) for i in range(2)]
    numbered = "< |image_1|>" if family_of(processor).name == "phi-3-vision" else "<|image_1|>"
    assert texts[0] == f"What is this {special[0]} {special[1:]} here, {numbered} or <image>?"
    assert texts[1] == "<tool_call> Compare."
    (upright,), (opaque, _) = prompts[0]["images"], prompts[1]["images"]
    assert upright.size == (40, 96) and upright.mode == opaque.mode == "RGB" and isinstance(upright, Image.Image)


def test_a_prompt_that_no_model_can_answer_is_named(processor, picture):
    row = {"prompt": [user("Two?", images=2)], "answer": "No.", "images": [picture]}
    prompts = sampled_prompts(Dataset.from_list([row], features=PROMPT_FEATURES), processor)
    with pytest.raises(ValueError, match="^row 1 of the batch .*images do not match"):
        prompts[0]
