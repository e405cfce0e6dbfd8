"""Estimated memory against what PyTorch's CPU allocator gives out, shapes against published counts of parameters."""

import copy
import math
from contextlib import nullcontext

import pytest
import random_model
import torch
from bitsandbytes.nn import Linear4bit
from peft import get_peft_model
from storages import Storages
from torch.utils import flop_counter
from transformers import AutoConfig, AutoModelForImageTextToText, Qwen2_5_VLConfig, Qwen3VLConfig
from trl.trainer import sft_trainer

from vlmhelpers.batches.collator import VisionCollator
from vlmhelpers.estimation.dry_run import dry_run, dry_run_of_answering, make_batch, make_meta_model
from vlmhelpers.estimation.memory import (
    GIB,
    GPUS,
    Memory,
    as_duration,
    estimate_memory,
    estimate_time,
    memory_table,
    smallest_gpu,
)
from vlmhelpers.families import family_of, find_config, tiny_model
from vlmhelpers.models.freezing import train_only
from vlmhelpers.models.loading import load_model
from vlmhelpers.models.lora import describe_trainable
from vlmhelpers.models.vision import stop_gradients_at_frozen_vision
from vlmhelpers.training.measuring import allocated_peak

PARAMETERS = {
    "Qwen/Qwen2.5-VL-3B-Instruct": 3_754_622_976,
    "Qwen/Qwen2.5-VL-7B-Instruct": 8_292_166_656,
    "Qwen/Qwen2.5-VL-72B-Instruct": 73_410_777_344,
    "Qwen/Qwen3-VL-2B-Instruct": 2_127_532_032,
    "Qwen/Qwen3-VL-4B-Instruct": 4_437_815_808,
    "Qwen/Qwen3-VL-8B-Instruct": 8_767_123_696,
    "meta-llama/Llama-3.2-11B-Vision-Instruct": 10_670_220_835,
    "microsoft/Phi-3-vision-128k-instruct": 4_146_621_440,
}
TEXT = {
    "hidden_size": 256,
    "num_hidden_layers": 5,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "intermediate_size": 768,
    "vocab_size": 8192,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 6, 6]},
}
TOKENS = {"image_token_id": 8000, "video_token_id": 8001, "vision_start_token_id": 8002, "vision_end_token_id": 8003}
VISION = {"depth": 4, "hidden_size": 128, "num_heads": 4, "intermediate_size": 384, "out_hidden_size": 256}


def medium(family):
    """A configuration of middle size: activations and weights of tens of megabytes each."""
    if family == "qwen2.5-vl":
        vision = VISION | {"patch_size": 14, "window_size": 112, "fullatt_block_indexes": [3]}
        return Qwen2_5_VLConfig(text_config=TEXT, vision_config=vision, **TOKENS)
    vision = VISION | {"patch_size": 16, "deepstack_visual_indexes": [1, 2]}
    return Qwen3VLConfig(text_config=TEXT | {"head_dim": 32}, vision_config=vision, **TOKENS)


def with_adapters(model, vision):
    return get_peft_model(model, random_model.make_lora(model, vision))


def train_for_real(config, dtype, batch, vision, gradient_checkpointing, prepare=with_adapters):
    """Two batches, as the trainer takes them on a CPU: the second with gradients and AdamW's states there."""
    batch = {name: torch.randn(t.shape) if t.is_meta else t.clone() for name, t in batch.items()}
    model = AutoModelForImageTextToText.from_config(copy.deepcopy(config), dtype=dtype)
    family_of(model).prepare(model)
    stop_gradients_at_frozen_vision(model)
    model = prepare(model, vision).train()
    if gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if prepare is with_adapters:
            model.enable_input_require_grads()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], fused=True)
    for _ in range(2):
        output = model(**batch, use_cache=False)
        output.logits.float()
        loss = output.loss
        del output
        loss.backward()
        optimizer.step()


def size(tensors):
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def compare_with_reality(config, dtype, checkpointing, labeled, batch_size, vision, image_tokens=100):
    batch = make_batch(config, 176, image_tokens, batch_size, labeled)
    model = make_meta_model(config, 16, 16, vision, checkpointing, dtype=dtype)
    step = dry_run(model, batch, half=None)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    still = size(model.parameters()) + size(model.buffers()) + 3 * size(trained)
    moving = step["kept"] + step["logits"] + step["temporary"]
    peak = allocated_peak(lambda: train_for_real(config, dtype, batch, vision, checkpointing))
    print(f"estimated {(still + moving) / 1e6:.1f} MB, allocated {peak / 1e6:.1f} MB, at rest {still / 1e6:.1f} MB")
    assert still + moving == pytest.approx(peak, rel=0.15)
    assert moving == pytest.approx(peak - still, rel=0.15)  # harder: the weights do not hide an error


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "dtype", "checkpointing", "labeled", "batch_size", "vision"),
    [
        ("qwen2.5-vl", torch.float32, False, None, 1, False),
        ("qwen2.5-vl", torch.bfloat16, True, None, 4, False),
        ("qwen2.5-vl", torch.bfloat16, True, 16, 4, False),
        ("qwen2.5-vl", torch.float32, False, 16, 4, True),
        ("qwen3-vl", torch.bfloat16, False, 16, 1, False),
        ("qwen3-vl", torch.float32, True, 16, 4, True),
        ("qwen3-vl", torch.float32, True, None, 1, False),
    ],
)
def test_the_estimate_is_the_allocators_peak(family, dtype, checkpointing, labeled, batch_size, vision):
    compare_with_reality(medium(family), dtype, checkpointing, labeled, batch_size, vision)


def answer_for_real(config, dtype, batch):
    inputs = {name: torch.randn(t.shape) if t.is_meta else t.clone() for name, t in batch.items()}
    model = AutoModelForImageTextToText.from_config(copy.deepcopy(config), dtype=dtype)
    family_of(model).prepare(model)
    model = get_peft_model(model, random_model.make_lora(model, False)).eval()
    with torch.no_grad():
        model(**inputs, use_cache=True, logits_to_keep=1)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen2.5-vl", "qwen3-vl"])
@pytest.mark.parametrize("batch_size", [1, 8])
def test_the_estimate_of_answering_is_the_allocators_peak(family, batch_size):
    config = medium(family)
    batch = make_batch(config, 176, 100, batch_size)
    del batch["labels"]
    model = make_meta_model(config, 16, 16, gradient_checkpointing=False, dtype=torch.float32).eval()
    moving = dry_run_of_answering(model, batch)
    still = size(model.parameters()) + size(model.buffers())
    peak = allocated_peak(lambda: answer_for_real(config, torch.float32, batch))
    print(f"estimated {(still + moving) / 1e6:.1f} MB, allocated {peak / 1e6:.1f} MB, at rest {still / 1e6:.1f} MB")
    assert still + moving == pytest.approx(peak, rel=0.15)
    assert moving == pytest.approx(peak - still, rel=0.25)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen2.5-vl", "qwen3-vl"])
@pytest.mark.parametrize("checkpointing", [True, False])
@pytest.mark.parametrize("last_layers", [None, 2])
def test_the_estimate_is_the_allocators_peak_for_float32_under_autocast(family, checkpointing, last_layers):
    config = medium(family)
    batch = make_batch(config, 176, 100, 4, 16)
    model = make_meta_model(config, 16, 16, False, checkpointing, full=not last_layers, last_layers=last_layers)
    step = dry_run(model, batch)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    still = size(model.parameters()) + size(model.buffers()) + 3 * size(trained)
    moving = step["kept"] + step["logits"] + step["temporary"]

    def prepare(model, _):
        train_only(model, ["language"], 2) if last_layers else train_only(model)
        return model

    peak = allocated_peak(lambda: train_for_real(config, torch.bfloat16, batch, False, checkpointing, prepare))
    print(f"estimated {(still + moving) / 1e6:.1f} MB, allocated {peak / 1e6:.1f} MB, at rest {still / 1e6:.1f} MB")
    assert still + moving == pytest.approx(peak, rel=0.05)
    assert moving == pytest.approx(peak - still, rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama-3.2-vision", "phi-3-vision"])
@pytest.mark.parametrize("checkpointing", [True, False])
def test_the_estimate_is_the_allocators_peak_for_the_other_families(family, checkpointing):
    config = AutoConfig.from_pretrained(tiny_model(family))
    image_tokens = family_of(config).states_per_image(config) or 100
    compare_with_reality(config, torch.float32, checkpointing, 16, 4, False, image_tokens)


@pytest.mark.parametrize("model_id", PARAMETERS)
def test_published_shapes_have_the_published_number_of_parameters(model_id):
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(find_config(model_id))
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[model_id]


@pytest.mark.parametrize(
    ("variant", "hidden", "layers"),
    [
        ("unsloth/Qwen2.5-VL-7B-Instruct-unsloth-bnb-4bit", 3584, 28),
        ("unsloth/Qwen3-VL-8B-Thinking", 4096, 36),
        ("Qwen/Qwen3-VL-2B-Thinking-FP8", 2048, 28),
        ("unsloth/Llama-3.2-11B-Vision-Instruct-bnb-4bit", 4096, 40),
        ("meta-llama/Llama-3.2-11B-Vision", 4096, 40),
        ("microsoft/Phi-3.5-vision-instruct", 3072, 32),
    ],
)
def test_variants_have_the_shape_of_their_model(variant, hidden, layers):
    text = find_config(variant).get_text_config()
    assert (text.hidden_size, text.num_hidden_layers) == (hidden, layers)


@pytest.mark.parametrize(
    "model_id", ["Qwen/Qwen2.5-VL-32B-Instruct", "Qwen/Qwen3-VL-235B-A22B-Instruct", "meta-llama/Llama-3.2-90B-Vision"]
)
def test_another_shape_is_an_error_that_names_the_known_ones(model_id):
    with pytest.raises(ValueError, match=r"Qwen/Qwen3-VL-8B-Instruct.*local folder with the model's config\.json"):
        find_config(model_id)


def test_four_bit_weights_and_their_scales_take_the_bytes_that_bitsandbytes_gives_them():
    folder = tiny_model("qwen2.5-vl")
    real, _ = load_model(str(folder), bits=4)
    layers = [module for module in real.modules() if isinstance(module, Linear4bit)]
    estimate = estimate_memory(folder, 64, 16)
    scales = sum(_scales(layer.weight.quant_state) for layer in layers)
    assert estimate.constants == scales
    packed, others = sum(layer.weight.numel() for layer in layers), [p for p in real.parameters() if p.dim()]
    in_16_bits = 2 * (sum(p.numel() for p in others) - packed)
    assert estimate.weights == packed + in_16_bits + size(real.buffers())


def _scales(state):
    return size([state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code])


@pytest.mark.parametrize("vision", [False, True])
def test_adapters_are_counted_exactly_with_gradients_and_two_states(vision):
    folder = tiny_model("qwen3-vl")
    model = AutoModelForImageTextToText.from_pretrained(folder)
    trained, _ = describe_trainable(get_peft_model(model, random_model.make_lora(model, vision, r=8))).total
    assert estimate_memory(folder, 64, 16, lora_r=8, vision=vision).trained == 4 * 4 * trained


@pytest.fixture(scope="module")
def batch_of_four():
    """What estimate_memory says of the tiny Qwen2.5-VL with four rows, for options that a test changes one by one."""
    return lambda **options: estimate_memory(tiny_model("qwen2.5-vl"), 128, 64, batch_size=4, **options)


@pytest.mark.slow
def test_what_saves_memory_saves_it_where_it_should(batch_of_four):
    plain = batch_of_four(gradient_checkpointing=False, bits=16)
    assert batch_of_four(gradient_checkpointing=True, bits=16).kept < plain.kept / 2
    labeled = batch_of_four(gradient_checkpointing=False, bits=16, labeled_tokens=4)
    assert labeled.logits < plain.logits / 8
    assert batch_of_four(gradient_checkpointing=False).weights < plain.weights
    assert plain.flops < batch_of_four(bits=16).flops  # layers are computed twice


@pytest.mark.slow
def test_full_fine_tuning_holds_gradients_and_states_of_every_parameter(batch_of_four):
    full = batch_of_four(bits=16, full=True)
    counted = sum(p.numel() for p in AutoModelForImageTextToText.from_pretrained(tiny_model("qwen2.5-vl")).parameters())
    assert full.weights == pytest.approx(4 * counted, rel=1e-3)  # and a few buffers
    assert full.trained == 3 * 4 * counted
    compared = batch_of_four(bits=16, full=True, reference=True)
    assert compared.total - full.total == 2 * counted  # the reference, in 16 bits
    with pytest.raises(ValueError, match="bits=16"):
        batch_of_four(full=True)


@pytest.mark.slow
def test_the_last_layers_alone_take_less(batch_of_four):
    full, freeze = batch_of_four(bits=16, full=True), batch_of_four(bits=16, last_layers=1)
    model = AutoModelForImageTextToText.from_pretrained(tiny_model("qwen2.5-vl"), dtype=torch.bfloat16)
    trained, counted = train_only(model, ["language"], last_layers=1).total
    assert freeze.trained == 3 * 4 * trained
    assert freeze.weights == pytest.approx(2 * counted + 2 * trained, rel=1e-3)
    assert freeze.total < full.total / 2
    with pytest.raises(ValueError, match="bits=16"):
        batch_of_four(last_layers=1)


def as_in_torch_2_11(formula):
    """An attention formula that refuses grouped queries, as that of the torch on Colab does."""

    def count(*shapes):
        if len({shape[:2] for shape in shapes}) > 1:
            raise AssertionError("sdpa_flop_count: query/key/value shapes are incompatible")
        return formula(*shapes)

    return count


@pytest.mark.parametrize("strict", [False, True])
def test_operations_are_those_of_the_matrix_products(strict, monkeypatch):
    for name in ("sdpa_flop_count", "sdpa_backward_flop_count") if strict else ():
        monkeypatch.setattr(flop_counter, name, as_in_torch_2_11(getattr(flop_counter, name)))
    config, tokens = medium("qwen2.5-vl"), 96
    model = make_meta_model(config, bits=16, full=True, gradient_checkpointing=False)
    flops = dry_run(model, make_batch(config, tokens, 0))["flops"]
    linear = [m for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and "visual" not in n]
    weights = sum(module.weight.numel() for module in linear)
    # Forward, gradients of the inputs and of the weights; attention: two products forward, five backward.
    attention = 7 * 2 * tokens**2 * TEXT["hidden_size"] * TEXT["num_hidden_layers"]
    assert flops == pytest.approx(3 * 2 * tokens * weights + attention, rel=1e-5)  # and the angles of positions


def test_a_batch_that_cannot_be_is_an_error():
    folder = tiny_model("qwen2.5-vl")
    with pytest.raises(ValueError, match="200 image tokens do not fit into 100"):
        estimate_memory(folder, 100, 200)
    with pytest.raises(ValueError, match="from 1 to 99"):
        estimate_memory(folder, 100, 20, labeled_tokens=100)


def test_the_autocast_of_the_dry_run_ends_with_it():
    before = torch.nn.functional.linear
    estimate_memory(tiny_model("qwen2.5-vl"), 32, 4)
    assert torch.nn.functional.linear is before


def test_a_memory_shows_its_parts_their_sum_and_what_is_not_in_it():
    memory = estimate_memory(tiny_model("qwen2.5-vl"), 128, 64)
    shown = repr(memory)
    for words in ("weights", "scales of 4-bit weights", "logits and loss", "peak", "T4 16 GB", "0.5 GiB"):
        assert words in shown and words in memory._repr_html_()
    parts = [float(text) for text in memory.table["GiB"]]
    assert sum(parts[:-1]) == pytest.approx(parts[-1], abs=5e-4)
    assert parts[-1] == pytest.approx(memory.total / GIB, abs=1e-4)


@pytest.mark.slow
def test_the_table_has_every_way_beside_the_guides_numbers(tmp_path):
    folder = tmp_path / "Qwen2.5-VL-3B"  # stands in for the real one, which takes its time
    AutoConfig.from_pretrained(tiny_model("qwen2.5-vl")).save_pretrained(folder)
    table = memory_table([str(folder)], tokens=64, image_tokens=16)
    row = table.loc["Qwen2.5-VL-3B"]
    assert (row["4-bit in the guide"], row["full in the guide"]) == (6, 12)
    assert {"4-bit LoRA", "16-bit LoRA", "full"} < set(table.columns)
    assert row["full fits on"] == "T4 16 GB"


@pytest.mark.slow
def test_the_guides_number_for_4_bits_is_near():
    table = memory_table(["Qwen/Qwen2.5-VL-3B-Instruct"])
    small, large, full = (float(table.iloc[0][way]) for way in ("4-bit LoRA", "16-bit LoRA", "full"))
    assert small == pytest.approx(6, rel=0.15)
    assert small < large < full


def memory_of(**parts):
    names = ("weights", "constants", "trained", "kept", "logits", "temporary", "flops")
    return Memory("", **dict.fromkeys(names, 0) | parts)


def test_gpus_have_room_for_cuda_and_something_to_spare():
    assert smallest_gpu(memory_of(weights=10 * GIB)) == "T4 16 GB"
    assert smallest_gpu(memory_of(weights=int(15.5e9))) == "L4 24 GB"


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ({"weights": 140 * GIB}, "2 x A100 80 GB with FSDP"),
        ({"weights": 40 * GIB, "trained": 100 * GIB}, "2 x A100 80 GB with FSDP"),
        ({"weights": 140 * GIB, "gathered": 10 * GIB}, "2 x H200 141 GB with FSDP"),
        ({"weights": 140 * GIB, "constants": 10 * GIB}, "2 x H200 141 GB with FSDP"),
        ({"weights": 140 * GIB, "kept": 50 * GIB, "copies": 49 * GIB}, "2 x A100 80 GB with FSDP"),
        ({"weights": 1500 * GIB}, "12 x H200 141 GB with FSDP"),
        ({"kept": 140 * GIB}, "more than 64 of any GPU"),  # a batch is not spread
    ],
)
def test_what_no_gpu_holds_is_spread_over_the_fewest(parts, expected):
    assert smallest_gpu(memory_of(**parts)) == expected


@pytest.mark.slow
def test_of_weights_that_are_spread_a_gpu_gathers_two_layers_and_what_is_outside_of_them(batch_of_four):
    whole = batch_of_four(bits=16, full=True)
    model = make_meta_model(find_config(tiny_model("qwen2.5-vl")), bits=16, full=True).model
    layers = [sum(p.nbytes for p in one.parameters()) for one in (*model.language_model.layers, *model.visual.blocks)]
    rest = whole.weights - sum(layers) - sum(buffer.nbytes for buffer in model.buffers())
    assert whole.gathered == rest + 2 * max(layers)
    matrices = [module.weight for module in model.modules() if isinstance(module, torch.nn.Linear)]
    assert sum(matrix.nbytes for matrix in matrices) / 2 <= whole.copies <= whole.kept
    assert whole.on_each(1) == whole.total > whole.on_each(2) > whole.on_each(3)


def test_time_is_a_range_that_shrinks_with_the_gpu():
    times = estimate_time(1e18)
    assert times["A100 40 GB"] == pytest.approx((1e18 / 312e12 / 0.45, 1e18 / 312e12 / 0.20))
    fastest = [times[gpu.name][0] for gpu in GPUS]
    assert fastest == sorted(fastest, reverse=True)
    assert math.isclose(times["T4 16 GB"][1], 1e18 / 65e12 / 0.20)
    with pytest.raises(ValueError, match="utilization"):
        estimate_time(1e18, utilization=(45, 20))


def test_durations_read_well():
    assert [as_duration(s) for s in (0.25, 40, 720, 12240)] == ["0.25 s", "40 s", "12 min", "3.4 h"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "bits", "logits", "checkpointing"),
    [
        ("qwen2.5-vl", 4, "labeled", True),
        ("qwen2.5-vl", 16, "all", False),
        ("qwen3-vl", 4, "all", True),
        ("qwen3-vl", 16, "labeled", False),
    ],
)
def test_the_estimate_is_what_trls_trainer_holds_under_autocast(
    family, bits, logits, checkpointing, tmp_path, monkeypatch
):
    # As on a GPU: peft's 4-bit layers see that autocast is on, and one kernel gives the entropies of TRL's metrics.
    asked = torch.is_autocast_enabled
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *device: asked(*device or ("cpu",)))
    monkeypatch.setattr(sft_trainer, "entropy_from_logits", lambda logits: logits.new_zeros(logits.shape[:-1]))
    config = medium(family)
    processor = random_model.make_processor(family, config, image_tokens=100)
    config.save_pretrained(tmp_path / "shape")
    rows = random_model.make_rows(8, 64)
    tokens, image_tokens, labeled = random_model.lengths(processor, rows, 4)
    labeled = labeled if logits == "labeled" else None
    options = {"bits": bits, "gradient_checkpointing": checkpointing, "labeled_tokens": labeled}
    estimate = estimate_memory(tmp_path / "shape", tokens, image_tokens, 4, **options)

    model = random_model.make_model(config, bits, "cpu")
    trainer = random_model.make_trainer(model, processor, rows, tmp_path, 4, 1, logits, checkpointing)
    watched, step = Storages(), trainer.training_step
    monkeypatch.setattr(trainer, "training_step", lambda *arguments: _watch_second(watched, step, arguments))
    trainer.train()
    pixels = 4 * VisionCollator(processor)(list(rows.select(range(4))))["pixel_values"].numel()
    held = watched.peak + pixels  # which came before
    assert estimate.kept + estimate.logits + estimate.temporary == pytest.approx(held, rel=0.05)
    assert estimate.weights + estimate.trained // 4 == size(trainer.model.parameters()) + size(trainer.model.buffers())


def _watch_second(watched, step, arguments):
    """The step, watched once gradients are there, which is from the second on."""
    trained = [parameter for parameter in arguments[0].parameters() if parameter.requires_grad]
    with watched if trained[0].grad is not None else nullcontext():
        return step(*arguments)


@pytest.mark.slow
def test_the_speed_of_trls_own_path_can_be_taken(tmp_path):
    """What the GPU tests do there, on a small model: rows of prompt and completion, TRL's collator and loss."""
    config = medium("qwen3-vl")
    processor = random_model.make_processor("qwen3-vl", config, image_tokens=20)
    rows = random_model.for_trls_collator(random_model.make_rows(4, 64), processor)
    model = random_model.make_model(config, 4, "cpu")
    trainer = random_model.make_trainer(model, processor, rows, tmp_path, 2, 1, logits=None)
    assert trainer.train().metrics["train_samples_per_second"] > 0
