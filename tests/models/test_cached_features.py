"""Cached features of images are those that the vision tower gives, and are never taken for others."""

import copy

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, set_seed
from trl import SFTConfig, SFTTrainer

from vlmhelpers import generate
from vlmhelpers.batches.collator import VisionCollator
from vlmhelpers.data.schema import FEATURES, make_row
from vlmhelpers.families import tiny_model
from vlmhelpers.models import cache_vision_features, stop_caching_vision_features
from vlmhelpers.models.lora import lora_targets
from vlmhelpers.samples.drawing import sample_products

SIZES = ((64, 64), (96, 48), (32, 128), (64, 96))
ROWS = [
    make_row("What is this?", f"A {product.category}.", [picture.resize(size)])
    for size, (product, picture) in zip(SIZES, sample_products(4, "features", size=96), strict=True)
]


@pytest.fixture(params=["qwen2.5-vl", "qwen3-vl"])
def family(request):
    return request.param


def load(family):
    processor = AutoProcessor.from_pretrained(tiny_model(family))
    processor.image_processor.size = {"shortest_edge": 32**2, "longest_edge": 128**2}
    model = AutoModelForImageTextToText.from_pretrained(tiny_model(family), dtype=torch.float32)
    return model.requires_grad_(False).eval(), processor


class Passes:
    """Counts the passes through the first block of the vision tower."""

    def __init__(self, model):
        self.count = 0
        next(
            module for name, module in model.named_modules() if name.endswith("visual.blocks.0")
        ).register_forward_hook(self)

    def __call__(self, *_):
        self.count += 1


def logits(model, collator, rows):
    with torch.no_grad():
        return model(**collator(rows)).logits


def test_the_outputs_are_the_same_in_whichever_batch_a_picture_comes_back(family, tmp_path):
    model, processor = load(family)
    collator = VisionCollator(processor)
    orders = ([0, 1, 2, 3], [2, 0], [3], [1, 3, 2])
    expected = [logits(model, collator, [ROWS[i] for i in places]) for places in orders]
    cache_vision_features(model, tmp_path)
    passes = Passes(model)
    for places, wanted in zip(orders, expected, strict=True):
        torch.testing.assert_close(logits(model, collator, [ROWS[i] for i in places]), wanted, atol=2e-5, rtol=1e-4)
    assert passes.count == 1
    stop_caching_vision_features(model)
    assert torch.equal(logits(model, collator, [ROWS[i] for i in orders[0]]), expected[0])
    assert passes.count == 2


def test_a_batch_with_one_new_picture_is_computed_and_kept(family, tmp_path):
    model, processor = load(family)
    collator, passes = VisionCollator(processor), Passes(model)
    cache_vision_features(model, tmp_path)
    for places in ([0, 1], [1, 2], [0, 1, 2], [0]):
        logits(model, collator, [ROWS[i] for i in places])
    assert passes.count == 2


def test_other_runs_of_the_same_tower_find_them_and_other_towers_do_not(family, tmp_path):
    model, processor = load(family)
    other = copy.deepcopy(model)
    collator = VisionCollator(processor)
    cache_vision_features(model, tmp_path)
    logits(model, collator, ROWS)
    same, _ = load(family)
    passes = Passes(same)
    cache_vision_features(same, tmp_path)
    logits(same, collator, ROWS)
    assert passes.count == 0
    other.model.visual.blocks[0].mlp.state_dict()[next(iter(other.model.visual.blocks[0].mlp.state_dict()))].add_(0.01)
    passes = Passes(other)
    expected = logits(other, collator, ROWS)
    cache_vision_features(other, tmp_path)
    assert torch.equal(logits(other, collator, ROWS), expected) and passes.count == 2


def test_pictures_that_differ_in_one_pixel_or_in_their_shape_are_told_apart(family, tmp_path):
    model, processor = load(family)
    collator, passes = VisionCollator(processor), Passes(model)
    cache_vision_features(model, tmp_path)
    picture = Image.new("RGB", (64, 64), "grey")
    changed = picture.copy()
    changed.putpixel((3, 3), (0, 0, 0))
    for image in (picture, changed, picture.resize((32, 128)), picture.resize((128, 32)), picture):
        logits(model, collator, [make_row("What is this?", "A hat.", [image])])
    assert passes.count == 4


def test_a_torn_file_is_computed_again_and_rows_without_pictures_need_none(family, tmp_path):
    model, processor = load(family)
    collator, passes = VisionCollator(processor), Passes(model)
    cache_vision_features(model, tmp_path)
    expected = logits(model, collator, ROWS[:1])
    [file] = tmp_path.rglob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-8])
    assert torch.equal(logits(model, collator, ROWS[:1]), expected) and passes.count == 2
    logits(model, collator, [make_row("Hello", "Hello.", [])])
    assert passes.count == 2 and not list(tmp_path.rglob("*.part"))


def train(family, tmp_path, features=None, **options):
    model, processor = load(family)
    set_seed(0)
    lora = LoraConfig(r=4, lora_alpha=4, target_modules=lora_targets(model), task_type="CAUSAL_LM")
    model = get_peft_model(model, lora)
    arguments = SFTConfig(
        tmp_path / "run", per_device_train_batch_size=2, num_train_epochs=3, max_length=None, bf16=False, use_cpu=True,
        loss_type="nll", logging_steps=1, report_to=[], save_strategy="no", disable_tqdm=True, learning_rate=1e-3,
        seed=1, **options,
    )  # fmt: skip
    dataset = Dataset.from_list(ROWS, features=FEATURES)
    trainer = SFTTrainer(
        model, arguments, VisionCollator(processor, logits="labeled"), dataset, processing_class=processor
    )
    if features:
        cache_vision_features(trainer.model, features)
    passes = Passes(model)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return losses, passes.count, generate(trainer.model, processor, dataset, max_new_tokens=8, progress=False)


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
def test_training_learns_the_same_and_computes_features_in_the_first_epoch_alone(family, tmp_path, checkpointing):
    options = {"gradient_checkpointing": checkpointing, "gradient_checkpointing_kwargs": {"use_reentrant": False}}
    losses, passes, answers = train(family, tmp_path, **options)
    ours, our_passes, our_answers = train(family, tmp_path, tmp_path / "features", **options)
    assert len(losses) == 6 and ours == pytest.approx(losses, rel=1e-4) and our_answers == answers
    assert (passes, our_passes) == (6, 2)


def test_a_trained_tower_is_refused_at_once_and_also_later(family, tmp_path):
    model, processor = load(family)
    cache_vision_features(model, tmp_path)
    model.model.visual.blocks[0].requires_grad_(True)
    with pytest.raises(ValueError, match="vision tower is trained.*lora_targets"):
        VisionCollator(processor)
        model(**VisionCollator(processor)(ROWS[:1]))
    with pytest.raises(ValueError, match="vision tower is trained"):
        cache_vision_features(model, tmp_path)
