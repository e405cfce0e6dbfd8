"""The checks that every family passes, one function each: what it promises is the first line of its docstring.

A check takes a `Base`, raises where the promise is broken, and returns None, or a word for what the family declares
that it does not do. `CHECKS` names them in the order of the table in docs/families.md.
"""

import copy
import inspect
import math
import re
from dataclasses import replace
from unittest.mock import patch

import bitsandbytes as bnb
import pytest
import torch
from bases import Base
from datasets import Dataset
from peft import LoraConfig
from torch.nn.functional import cross_entropy
from transformers import AutoProcessor
from trl import SFTConfig, SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from vlmhelpers.batches import VisionCollator, precompute, tokenize_rows
from vlmhelpers.batches.chat_template import IGNORED
from vlmhelpers.batches.conversation import clean
from vlmhelpers.batches.validation import rules_of
from vlmhelpers.data.schema import FEATURES, assistant, last_question, make_row, message_text, text_part, user
from vlmhelpers.estimation import estimate_memory
from vlmhelpers.estimation.dry_run import make_batch
from vlmhelpers.estimation.planning import count_rows
from vlmhelpers.export import check_export, merge, save_adapter, verification
from vlmhelpers.export.probing import probe
from vlmhelpers.families import FAMILIES, TINY_BASES, TOWERS
from vlmhelpers.inference import generate, stream_answer
from vlmhelpers.inference.generation import ends_of
from vlmhelpers.models import load_model, loading, set_max_pixels
from vlmhelpers.models.backends import add_lora
from vlmhelpers.models.lora import expert_parameters, keep_adapters_float32, lora_targets
from vlmhelpers.models.vision import cache_vision_features, stop_caching_vision_features

KNOWN = {"What is the opposite of big?": "Small.", "Write 3 as a word.": "Three."}  # which the tiny bases answer right
SIZES = ((20, 20), (64, 48), (48, 64), (31, 97), (300, 40), (40, 300), (128, 128), (200, 150), (90, 91), (150, 33))
SYSTEM = {"role": "system", "content": [text_part("Answer briefly.")]}
TALK = {"messages": [user("Say a."), assistant("A."), user("And b?"), assistant("B.")], "images": []}
TEXTS = [make_row("Write 3 as a word.", "Three."), TALK, make_row("Hello", "Hi, what can I do for you?")]
CHOICES = [  # options of lora_targets, the towers that get adapters
    ({}, {"language"}),
    ({"vision": True}, {"language", "vision", "projector"}),
    ({"language": False, "vision": True}, {"vision", "projector"}),
]


# What the checks share


def dataset_of(rows):
    return Dataset.from_list(rows, features=FEATURES)


def arguments_of(model):
    """(names of what `forward` takes, whether it takes others)."""
    found = inspect.signature(type(model).forward).parameters.values()
    return {parameter.name for parameter in found}, any(p.kind is p.VAR_KEYWORD for p in found)


def logits_of(model, batch):
    """(n, t, vocabulary); `use_cache` is what TRL's trainer passes."""
    with torch.no_grad():
        return model(**{name: batch[name] for name in batch if name != "labels"}, use_cache=False).logits


def token_losses(model, batch):
    """The loss of every learned token, row by row."""
    logits, labels = logits_of(model, batch)[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten()
    return cross_entropy(logits.float(), labels, reduction="none")[labels != IGNORED]


def assert_same(batch, expected):
    """Two batches have the same names, and the same bits under each."""
    assert batch.keys() == expected.keys()
    for name, tensor in expected.items():
        assert batch[name].dtype == tensor.dtype and torch.equal(batch[name], tensor), name


def linears(model):
    """Those that are called: torch's own attention reads the weights of its last one instead."""
    attentions = [module for module in model.modules() if isinstance(module, torch.nn.MultiheadAttention)]
    inside = {part for attention in attentions for part in attention.modules()}
    return {n: m for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and m not in inside}


def decoder_linears(base, left_out=()):
    """Names of the linear layers in what transformers calls the decoder, but its head and what is inside `left_out`.

    Neither are routers, nor an encoder that is inside the decoder.
    """
    decoder, encoder = base.model.get_decoder(), base.model.get_encoder(modality="image")
    inside = set(decoder.modules()) - (set() if decoder in set(encoder.modules()) else set(encoder.modules()))
    inside -= {base.model.get_output_embeddings()}
    names = {name for name, module in linears(base.model).items() if module in inside}
    return {name for name in names if base.family.is_adapted(name) and not {*left_out} & {*name.split(".")}}


def with_adapters(model, **chosen):
    """A copy of the model with adapters that change its answers."""
    torch.manual_seed(0)
    lora = LoraConfig(r=4, lora_alpha=8, target_modules=lora_targets(model, **chosen), init_lora_weights=False)
    tuned = add_lora(copy.deepcopy(model), lora).train()
    keep_adapters_float32(tuned)
    return tuned


def gradients_of_a_step(tuned, batch, checkpointing=True):
    """(loss, gradients of the adapters by name) of a step."""
    if checkpointing:
        tuned.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        tuned.enable_input_require_grads()
    loss = tuned(**batch, use_cache=False).loss
    loss.backward()
    return loss.item(), {name: p.grad for name, p in tuned.named_parameters() if p.requires_grad}


def assert_reached(loss, gradients):
    missed = [name for name, grad in gradients.items() if grad is None or not (grad.isfinite().all() and grad.any())]
    assert math.isfinite(loss) and not missed


def roomy(base):
    """The processor with a range of sizes: the tiny bases themselves have a single one."""
    processor = copy.deepcopy(base.processor)
    if base.name in TINY_BASES and base.family.has_pixel_cap:
        set_max_pixels(processor, 128**2)
    return processor


# Batches


def check_images(base: Base):
    """Another image changes the loss."""
    rows = [make_row("What is this?", "A red bag.", [image]) for image in base.images[::2]]
    one, other = (token_losses(base.model, base.collator([row])) for row in rows)
    assert (one - other).abs().max() > 1e-2


def check_mixed(base: Base):
    """Rows with no, one and two images have the losses that they have alone, batched and mixed, padded left and right.

    A family that is not mixable has them in batches of their own, and refuses others by the row's name.
    """
    for rows in base.batches():
        alone = [base.collator([row]) for row in rows]
        batch, prompts = base.collator(rows), base.collator.prompts(rows)
        _assert_rows_as_alone(base.model, batch, prompts, alone)
        expected = torch.cat([token_losses(base.model, one) for one in alone]).mean().item()
        for logits in _ways(base.model):
            loss = base.model(**VisionCollator(base.processor, logits=logits)(rows)).loss
            assert loss.item() == pytest.approx(expected, abs=1e-4)
    if not base.family.mixable:
        return _refuses_mixed(base)


def _ways(model):
    """Of `VisionCollator(logits=...)`: not all models can compute some logits alone."""
    return ("all", "labeled") if "logits_to_keep" in arguments_of(model)[0] else ("all",)


def _assert_rows_as_alone(model, batch, prompts, alone):
    right, left = logits_of(model, batch), logits_of(model, prompts)
    for i, one in enumerate(alone):
        expected, length = logits_of(model, one)[0], one["input_ids"].shape[1]
        for name in ("input_ids", "labels"):
            assert torch.equal(batch[name][i, :length], one[name][0])
        assert (batch["labels"][i, length:] == IGNORED).all()
        asked = int(prompts["attention_mask"][i].sum())
        assert torch.equal(prompts["input_ids"][i, -asked:], one["input_ids"][0, :asked])
        torch.testing.assert_close(right[i, :length], expected, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(left[i, -asked:], expected[:asked], atol=1e-4, rtol=1e-4)


def _refuses_mixed(base):
    mixed = [base.rows[0] | {"row": 4}, base.rows[1] | {"row": 9}]
    for make in (base.collator, base.collator.prompts):
        with pytest.raises(ValueError, match="^row 9: no image, .*batches of their own"):
            make(mixed)
    return "apart"


def check_labels(base: Base):
    """Labels decode to the answers, each with an end that generation knows; no image token is learned."""
    ends, tokenizer = ends_of(base.model, base.collator)["eos_token_id"], base.processor.tokenizer
    ends, size = ends if isinstance(ends, list) else [ends], base.model.get_output_embeddings().weight.shape[0]
    for row in base.rows:
        batch = base.collator([row])
        learned = batch["labels"][batch["labels"] != IGNORED].tolist()
        assert learned[-1] in ends
        header, end = _header(base, row), "|".join(re.escape(_plain(tokenizer.decode(token))) for token in ends)
        said = [_plain(message_text(message)) for message in row["messages"] if message["role"] == "assistant"]
        pattern = "".join(f"{re.escape(header + answer)}({end})" for answer in said)
        assert re.fullmatch(pattern, _plain(tokenizer.decode(learned)))
        for train_on in ("last", "all"):
            labels = VisionCollator(base.processor, train_on=train_on)([row])["labels"]
            assert 0 <= labels.max() < size and not base.collator.is_image(labels).any()
    return f"and {header}" if header else None


def _header(base, row):
    """What the template writes between the prompt and the last answer, which a model has to write: usually nothing."""
    messages = [clean(message, base.collator.template.control) for message in row["messages"]]
    text, prompt = (base.collator.template.text(messages[:end], prompt=end is not None) for end in (None, -1))
    return _plain(text[len(prompt) :].partition(message_text(row["messages"][-1]))[0])


def _plain(text):
    """Without blanks: a SentencePiece vocabulary writes one before an answer, and after each special token."""
    return "".join(text.split())


def check_control(base: Base):
    """Control tokens that a text holds stay text, whole or in parts, in questions and answers."""
    specials = sorted(base.collator.template.control_tokens)
    collator = VisionCollator(base.processor, train_on="last")
    row, plain = _with_controls(" ".join(["<|image_1|>", *specials]), specials, base.images[:1])
    for make in (collator, collator.prompts):
        ids, expected = (make([one])["input_ids"] for one in (row, plain))
        for special, token in zip(specials, base.processor.tokenizer.convert_tokens_to_ids(specials), strict=True):
            assert (ids == token).sum() == (expected == token).sum(), special
    labels = collator([row])["labels"][0]
    learned = base.processor.tokenizer.decode(labels[labels != IGNORED][:-1])
    assert _plain(learned) == _header(base, plain) + _plain(message_text(row["messages"][-1]))


def _with_controls(written, specials, images):
    """A row with control tokens in its texts, and the same conversation without."""
    split = user("", images=1)
    split["content"] += [text_part(piece) for special in specials for piece in (special[:3], special[3:])]
    row = {"messages": [user(written), assistant("A."), split, assistant(written)], "images": images}
    plain = {"messages": [user("a"), assistant("b"), user("c", images=1), assistant("d")], "images": images}
    return row, plain


def check_system(base: Base):
    """The text of a system turn is in the prompt, with an image and without, or the row is refused with a remedy."""
    refused = []
    for row in base.rows:
        row = row | {"messages": [SYSTEM, *row["messages"]]}
        if rules_of(base.processor)(row, [image.size for image in row["images"]]):
            with pytest.raises(ValueError, match="Remedy: put the text of its system turn at the beginning"):
                base.collator([row])
            refused.append(bool(row["images"]))
            continue
        ids = base.collator.prompts([row])["input_ids"][0]
        assert "Answer briefly." in base.processor.tokenizer.decode(ids)
        base.collator([row])
    return ("not beside images" if all(refused) else "refused") if refused else None


def check_prompt(base: Base):
    """The prompt that is answered is the very beginning of what was trained on, token by token."""
    collator = VisionCollator(base.processor, train_on="last")
    for row in base.rows:
        prompt, batch = collator.prompts([row]), collator([row])
        length = prompt["input_ids"].shape[1]
        assert torch.equal(batch["input_ids"][:, :length], prompt["input_ids"])
        assert (batch["labels"][0] != IGNORED).int().argmax() == length


def check_inputs(base: Base):
    """All that the processor returns is in the batch, as tensors that the model takes."""
    names, takes_more = arguments_of(base.model)
    for row in base.rows:
        text, batch = base.collator.template.text(row["messages"]), base.collator([row])
        made = base.processor(text=[text], images=[row["images"]] if row["images"] else None, return_tensors="pt")
        assert {*made} <= {*batch} and (takes_more or {*batch} <= names)
        assert all(isinstance(tensor, torch.Tensor) for tensor in batch.values())


# Towers, adapters, 4 bits


def check_towers(base: Base):
    """Each parameter is in the tower that transformers' own parts say; a projector may be inside the encoder."""
    model, head, found = base.model, base.model.get_output_embeddings(), set()
    parts = {"vision": model.get_encoder(modality="image"), "head": head, "language": model.get_decoder()}
    if head.weight is model.get_input_embeddings().weight:
        del parts["head"]  # it has none of its own
    inside = {tower: {id(p) for p in part.parameters()} for tower, part in parts.items() if part is not model}
    allowed = {"vision": {"vision", "projector"}, "language": {"language"}, "head": {"head"}}
    for name, parameter in model.named_parameters():
        of_parts = [tower for tower in inside if id(parameter) in inside[tower]]  # the decoder may hold the others
        tower = base.family.tower_of(name)
        assert tower in (allowed[of_parts[0]] if of_parts else {"vision", "projector", "audio"}), name
        found.add(tower)
    assert {"language"} < found <= {*TOWERS, "audio"} and found & {"vision", "projector"}


def check_adapters(base: Base):
    """Adapters are on all linear layers of the chosen towers but those that choose experts, whose own can be asked for.

    Those on experts get gradients, and merge without a difference.
    """
    for chosen, towers in CHOICES:
        tuned = with_adapters(base.model, **chosen)
        adapted = {n.removeprefix("base_model.model.") for n, m in tuned.named_modules() if hasattr(m, "lora_A")}
        tower_of = base.family.tower_of
        expected = {n for n in linears(base.model) if tower_of(n) in towers - {"language"}}
        expected = set(filter(base.family.is_adapted, expected))
        assert adapted == expected | (decoder_linears(base) if "language" in towers else set()) != set()
        assert all(p.requires_grad == (".lora_" in name) for name, p in tuned.named_parameters())
    if expert_parameters(base.model):
        _adapt_experts(base)


def _adapt_experts(base):
    torch.manual_seed(0)
    model, targets = copy.deepcopy(base.model), lora_targets(base.model)
    lora = LoraConfig(r=4, target_modules=targets, target_parameters=expert_parameters(model), init_lora_weights=False)
    tuned, batch = add_lora(model, lora), base.collator(base.rows[:1])
    _, gradients = gradients_of_a_step(tuned, batch, checkpointing=False)
    # Not each in each layer: those for image tokens in the last one reach no label.
    reached = [name for name, grad in gradients.items() if ".experts." in name and grad is not None and grad.any()]
    assert all(any(f".{name.rpartition('.')[0]}." in found for found in reached) for name in lora.target_parameters)
    expected = logits_of(tuned, batch)
    assert (expected - logits_of(base.model, batch)).abs().max() > 1e-2
    torch.testing.assert_close(logits_of(tuned.merge_and_unload(), batch), expected, atol=1e-3, rtol=1e-3)


def check_4_bits(base: Base):
    """Exactly the linear layers of the decoder have 4 bits, but routers and what the family leaves out; a step trains.

    All else stays in its own type.
    """
    model = base.in_4_bits
    quantized = {name: module for name, module in linears(model).items() if isinstance(module, bnb.nn.Linear4bit)}
    assert quantized.keys() == decoder_linears(base, base.family.not_quantized) != set()
    for module in quantized.values():
        assert (module.weight.quant_type, module.weight.quant_state.nested) == ("nf4", True)
        assert module.compute_dtype == torch.float32 and not module.support_avx512bf16_for_cpu
    assert {p.dtype for p in model.parameters() if not isinstance(p, bnb.nn.Params4bit)} == {torch.float32}
    assert_reached(*gradients_of_a_step(with_adapters(model), base.collator(base.rows[:1])))


# Training


def check_checkpointing(base: Base):
    """Gradient checkpointing changes no gradient."""
    batch = base.collator([base.rows[0], base.rows[2]])
    (loss, plain), (again, found) = (
        gradients_of_a_step(with_adapters(base.model), batch, checkpointing) for checkpointing in (False, True)
    )
    assert_reached(loss, plain)
    assert loss == pytest.approx(again, abs=1e-5) and plain.keys() == found.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-3)


def check_bf16(base: Base):
    """A step in bfloat16, without autocast, is close to that in float32, and reaches every adapter."""
    batch = base.collator([base.rows[0], base.rows[2]])
    with patch.object(loading, "compute_dtype", return_value=torch.bfloat16):
        model = load_model(base.folder, bits=16, backend="transformers")[0]
    loss, gradients = gradients_of_a_step(with_adapters(model), batch)
    with torch.no_grad():
        assert loss == pytest.approx(with_adapters(base.model)(**batch).loss.item(), rel=0.03)
    assert_reached(loss, gradients)


def check_train(base: Base):
    """Twenty steps of TRL's trainer on eight rows lower the loss, and change all adapters and nothing else."""
    tuned = add_lora(copy.deepcopy(base.model), LoraConfig(r=8, lora_alpha=16, target_modules=lora_targets(base.model)))
    before = {name: parameter.detach().clone() for name, parameter in tuned.named_parameters()}
    trainer = _trainer(base, tuned, _rows_to_learn(base))
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    changed = {name for name, parameter in tuned.named_parameters() if not torch.equal(before[name], parameter)}
    assert changed == {name for name in before if ".lora_" in name}
    assert len(losses) == 20 and losses[-1] < losses[0] - 0.3


def _rows_to_learn(base):
    """Eight rows that a batch may hold together."""
    with_images, plain = base.rows[0], base.rows[1]
    return [with_images, base.rows[2]] * 4 if not base.family.mixable else [with_images, plain, base.rows[2], plain] * 2


def _trainer(base, tuned, rows):
    settings = SFTConfig(
        output_dir=base.scratch / "run", max_steps=20, per_device_train_batch_size=4, learning_rate=1e-2,
        loss_type="nll", max_length=None, remove_unused_columns=False, use_cpu=True, bf16=False, logging_steps=1,
        save_strategy="no", report_to="none", disable_tqdm=True, gradient_checkpointing=False,
        dataloader_pin_memory=False, seed=1,
    )  # fmt: skip
    collator = VisionCollator(base.processor, logits=_ways(base.model)[-1])
    return SFTTrainer(tuned, settings, collator, dataset_of(rows), processing_class=base.processor)


def check_packed(base: Base):
    """Rows packed into one sequence have the losses that they have alone, or the family refuses to pack."""
    rows, collator = [row for row in TEXTS if base.teaches(row)], copy.copy(base.collator)
    dataset = dataset_of(rows)
    if base.family.packable:
        tokenized = tokenize_rows(dataset, collator)
        assert _is_apart(base, rows, tokenized, "sdpa") and _is_apart(base, rows, tokenized, "eager")
        return None
    with pytest.raises(ValueError, match=f"^{type(base.processor).__name__}: packed rows .*Train without packing"):
        tokenize_rows(dataset, collator)
    collator.family = replace(base.family, packable=True)
    return "no, though apart" if _is_apart(base, rows, tokenize_rows(dataset, collator), "sdpa") else "no"


def _is_apart(base, rows, tokenized, attention):
    model = copy.deepcopy(base.model)
    model.set_attn_implementation(attention)
    alone = torch.cat([token_losses(model, base.collator([row])) for row in rows])
    return torch.allclose(token_losses(model, _packed(base, tokenized)), alone, atol=1e-4, rtol=1e-4)


def _packed(base, rows):
    """What TRL's trainer makes of tokenized rows that share one sequence."""
    joined = {name: [token for row in rows for token in row[name]] for name in ("input_ids", "labels")}
    joined["seq_lengths"] = [len(row["input_ids"]) for row in rows]
    return DataCollatorForLanguageModeling(base.processor.tokenizer.pad_token_id, padding_free=True)([joined])


# Images


def check_pixels(base: Base):
    """Batches over pixels stored on disk are the same bit for bit, or the family refuses to store them."""
    dataset, processor, folder = dataset_of(base.rows), roomy(base), base.scratch / "pixels"
    if not base.family.caches_pixels:
        able = ", ".join(name for name, family in FAMILIES.items() if family.caches_pixels)
        refusal = f"{type(processor).__name__}: its pixels cannot be stored, only those of {able}"
        with pytest.raises(ValueError, match=refusal):
            precompute(dataset, processor, folder, progress=False)
        return "no"
    stored = precompute(dataset, processor, folder, progress=False)
    collator, number = VisionCollator(processor), {id(row): i for i, row in enumerate(base.rows)}
    for batch in base.batches():
        ours = [stored[number[id(row)]] for row in batch]
        assert_same(collator(ours), collator(batch))
        assert_same(collator.prompts(ours), collator.prompts(batch))


def check_features(base: Base):
    """The features of a frozen tower that are stored give the logits of computed ones, or the family refuses."""
    folder = base.scratch / "features"
    if not base.family.caches_features:
        able = ", ".join(name for name, family in FAMILIES.items() if family.caches_features)
        with pytest.raises(ValueError, match=f"^{type(base.model).__name__}: its features .* only those of {able}$"):
            cache_vision_features(base.model, folder)
        return "no"
    model, batch = copy.deepcopy(base.model).requires_grad_(False), base.collator([base.rows[2], base.rows[0]])
    expected = logits_of(model, batch)
    cache_vision_features(model, folder)
    for _ in range(2):
        torch.testing.assert_close(logits_of(model, batch), expected, atol=2e-5, rtol=1e-4)
    assert len(list(folder.rglob("*.safetensors"))) == 3
    stop_caching_vision_features(model)


def check_counts(base: Base):
    """Tokens are counted without the images as the collator makes them, at ten sizes, and nothing is changed by it."""
    dataset, processor = dataset_of(_rows_of_sizes(base.images)), roomy(base)
    settings, collator = processor.image_processor.to_json_string(), VisionCollator(processor)
    before = [collator([row]) for row in dataset]
    counts, unusable = count_rows(dataset, range(len(dataset)), processor)
    assert not unusable and len({count.total for count in counts}) > (3 if base.family.has_pixel_cap else 1)
    for count, batch in zip(counts, before, strict=True):
        assert count.total == batch["attention_mask"].sum() and count.labeled == (batch["labels"] != IGNORED).sum()
        assert count.image == collator.is_image(batch["input_ids"]).sum() * base.family.images_in_sequence
    assert processor.image_processor.to_json_string() == settings
    for row, batch in zip(dataset, before, strict=True):
        assert_same(collator([row]), batch)


def _rows_of_sizes(images):
    """Eleven rows: with images of ten sizes, the tenth with two of them, and without."""
    rows = [make_row("What is this?", "A bag.", [images[i % 4].resize(size)]) for i, size in enumerate(SIZES)]
    rows[-1] = make_row("Compare.", "Both are bags.", [images[0].resize(SIZES[-1]), images[1]])
    return [*rows, make_row("Hello, who are you?", "A shop's assistant.")]


def check_cap(base: Base):
    """A cap on pixels lowers the tokens, is saved with the processor, and the model still runs; or there is none."""
    row, processor = make_row("What is this?", "A bag.", [base.images[2].resize((200, 150))]), roomy(base)
    if not base.family.has_pixel_cap:
        with pytest.raises(ValueError, match=f"{type(processor.image_processor).__name__} has no pixel cap"):
            set_max_pixels(processor, 1000)
        return "none"
    before = _image_tokens(processor, row)
    set_max_pixels(processor, base.family.largest_cap(processor, row["images"], before - 1))
    capped = _image_tokens(processor, row)
    processor.save_pretrained(base.scratch / "capped")
    loaded = AutoProcessor.from_pretrained(base.scratch / "capped", trust_remote_code=False)
    assert 0 < _image_tokens(loaded, row) == capped < before
    assert token_losses(base.model, VisionCollator(loaded)([row])).isfinite().all()


def _image_tokens(processor, row):
    collator = VisionCollator(processor)
    return int(collator.is_image(collator([row])["input_ids"]).sum())


def check_estimate(base: Base):
    """The estimate of memory grows with images, with their tokens and with adapters, for batches as the collator's."""
    states = base.family.states_per_image(base.model.config)
    one, two = (states, 2 * states) if states else (60, 110)
    choices = ((0, False), (one, False), (two, False), (one, True))
    text, seen, more, adapted = (
        estimate_memory(base.folder, 150, tokens, vision=vision, gradient_checkpointing=False)
        for tokens, vision in choices
    )
    assert text.flops < seen.flops < min(more.flops, adapted.flops)
    assert text.kept <= seen.kept < adapted.kept and seen.kept <= more.kept
    assert text.weights == seen.weights == adapted.weights
    batch = make_batch(base.model.config, 150, one, labeled_tokens=3, processor=base.processor)
    made = VisionCollator(base.processor, logits="labeled")(base.rows[:1]).keys()
    assert batch.keys() == made - {"batch_num_images"}  # one, unless LLaVA-OneVision is told otherwise


# Answers and exports


def _questions(base):
    """Rows with prompts of very different lengths and images of different shapes."""
    more = [make_row("Please. " * i**4 + "Describe this.", "-", [image]) for i, image in enumerate(base.images)]
    return [*(make_row(*pair) for pair in KNOWN.items()), *base.rows[:3], *more[2:]]


def check_answers(base: Base):
    """Answers are the same alone, in any batch and streamed, and so they are beyond their end."""
    rows = _questions(base)
    alone, together = (answers(base.model, base.processor, rows, batch_size=size) for size in (1, 4))
    assert alone == together and len(set(alone)) > 3
    if base.name in TINY_BASES:
        assert alone[:2] == list(KNOWN.values())
    for row, expected in ((rows[0], alone[0]), (rows[4], alone[4])):  # without images and with two
        _assert_streamed(base, row, expected)
    _assert_same_beyond_the_end(base, rows[4:6])


def answers(model, processor, rows, max_new_tokens=8, **options):
    return generate(model, processor, dataset_of(rows), max_new_tokens=max_new_tokens, progress=False, **options)


def _assert_streamed(base, row, expected):
    pieces, question = [], last_question(row["messages"])
    options = {"max_new_tokens": 8, "write": pieces.append}
    streamed = stream_answer(base.model, base.processor, question, row["images"], **options)
    assert streamed == expected
    if "\ufffd" not in expected:  # what is no character may come in other pieces
        assert "".join(pieces) == expected


def _assert_same_beyond_the_end(base, rows):
    """No end token is allowed, so that all rows go on to the limit, far from what the model knows."""
    limits = {"max_new_tokens": 24, "min_new_tokens": 24}
    alone, together = (answers(base.model, base.processor, rows, batch_size=size, **limits) for size in (1, 2))
    assert alone == together


def check_merge(base: Base):
    """An adapter that is saved and merged answers as before, by `check_export`, and as likely."""
    torch.manual_seed(0)
    targets = lora_targets(base.model, vision=True)
    lora = LoraConfig(r=4, lora_alpha=16, target_modules=targets, init_lora_weights=False)
    tuned = add_lora(copy.deepcopy(base.model), lora).eval()
    adapter = save_adapter(tuned, base.processor, base.scratch / "adapter")
    folder = merge(adapter, base.scratch / "merged", base.folder, torch.float32)
    with patch.object(verification, "probe_in_fresh_process", _probe_here):
        found = check_export(folder, adapter, dataset_of(base.rows), [0, 1], base.folder, max_new_tokens=8)
    assert found.raise_if_wrong().distance < 1e-3


def _probe_here(folder, rows, max_new_tokens, references):
    """A process of its own takes ten seconds; tests/export has one."""
    return probe(*load_model(folder, bits=16, backend="transformers"), rows, max_new_tokens, references)


CHECKS = {
    "images": check_images,
    "mixed": check_mixed,
    "labels": check_labels,
    "control": check_control,
    "system": check_system,
    "prompt": check_prompt,
    "inputs": check_inputs,
    "towers": check_towers,
    "adapters": check_adapters,
    "4 bits": check_4_bits,
    "checkpointing": check_checkpointing,
    "bf16": check_bf16,
    "train": check_train,
    "packed": check_packed,
    "pixels": check_pixels,
    "features": check_features,
    "counts": check_counts,
    "cap": check_cap,
    "estimate": check_estimate,
    "answers": check_answers,
    "merge": check_merge,
}
# What a model needs that nobody has described: the rest is refused, or is of a family's own knowledge.
OF_GENERIC = (
    *("images", "mixed", "labels", "control", "system", "prompt", "inputs", "towers", "adapters", "4 bits", "bf16"),
    *("train", "counts", "answers", "merge"),
)
