"""Choosing and loading a vision-language model: the real one where it can run, elsewhere a tiny one of its family."""

import json
import os
from pathlib import Path
from typing import get_args, get_type_hints

import torch
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    BitsAndBytesConfig,
    PreTrainedConfig,
    PreTrainedModel,
    ProcessorMixin,
)

from vlmhelpers.common.display import show_note
from vlmhelpers.common.distributed import is_sharded
from vlmhelpers.common.environment import compute_dtype, hidden_gpu, one_gpu
from vlmhelpers.common.errors import CannotRun
from vlmhelpers.families import FAMILIES, TINY_BASES, family_of, tiny_model
from vlmhelpers.families.received import count_weights, load_config, reading
from vlmhelpers.families.untrainable import UNTRAINABLE
from vlmhelpers.models.backends import choose_backend, load_with_unsloth
from vlmhelpers.models.template_trial import check_template
from vlmhelpers.models.vision import stop_gradients_at_frozen_vision


def choose_model(model_id: str) -> str:
    """What to load for `model_id` (a family's name, a local folder or a hub id) here; a box says what, and why.

    Without a GPU a hub id becomes the tiny base of its family. Raises ValueError when there is none, and RuntimeError
    where the driver sees a GPU that torch cannot use.
    """
    found, text = resolve_model(model_id)
    show_note("The model of the outputs below", text)
    return found


def resolve_model(model_id: str) -> tuple[str, str]:
    """What `choose_model` gives, and what its box says."""
    if model_id not in TINY_BASES:
        if Path(model_id).is_dir():
            return str(model_id), f"{model_id}, a local folder"
        one_gpu()
        if hidden := hidden_gpu():
            raise CannotRun(f"{model_id} needs a GPU, and {hidden}")
        if torch.cuda.is_available():
            return model_id, f"{model_id} on {torch.cuda.get_device_name()}"
    family = family_of(model_id).name
    if family not in TINY_BASES:
        raise ValueError(f"no GPU for {model_id!r}, and its family has no tiny base, as {', '.join(TINY_BASES)} have")
    stands_in = "" if model_id == family else f" There is no GPU here: it stands in for {model_id}."
    text = f"the tiny base of {family}: the real architecture with about a million parameters, pretrained on drawn"
    why = " images. It shows how the method works, not how good a real model is."
    return str(tiny_model(family)), text + why + stands_in


def load_model(
    model_id: str | Path,
    bits: int = 4,
    max_pixels: int | None = None,
    backend: str = "auto",
    chat_template: str | None = None,
) -> tuple[PreTrainedModel, ProcessorMixin]:
    """A model ready for training or inference, and its processor.

    bits: 4 stores the language model's matrices as NF4 with double quantization (Dettmers et al. 2023,
    arXiv:2305.14314), on a CPU, too; a quantized vision tower can wreck the answers. 16 quantizes nothing.
    max_pixels: see `set_max_pixels`. backend: "unsloth", "transformers", or "auto" for Unsloth once imported and where
    it has the family. chat_template: its text, in place of the processor's. Computes in `compute_dtype()`. Raises
    ValueError for what cannot be read, such as a model that brings code of its own, which is never executed, for
    weights that are stored in other bits, and for what cannot be trained by chat. FileNotFoundError for weights that
    are not all there.
    """
    if bits not in (4, 16):
        raise ValueError(f"bits={bits!r}: choose 4 (NF4) or 16 (no quantization)")
    one_gpu()
    dtype = compute_dtype()
    processor = load_processor(model_id)
    processor.chat_template = chat_template or processor.chat_template
    check_supported(model_id, processor)
    _refuse_stored(model_id, bits)
    if max_pixels is not None:
        set_max_pixels(processor, max_pixels)
    if _runs_on_unsloth(backend, processor):
        with reading(model_id):
            return load_with_unsloth(model_id, bits, dtype), processor
    device = int(os.environ.get("LOCAL_RANK", 0)) if torch.cuda.is_available() else "cpu"
    options = {"dtype": dtype} if is_sharded() else {"dtype": dtype, "device_map": {"": device}}
    if bits == 4:
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
            bnb_4bit_quant_storage=dtype if is_sharded() else torch.uint8,  # only numbers can be sharded
            llm_int8_skip_modules=not_in_4_bits(model_id),
        )
    model = load_weights(model_id, **options)
    _ask_for_no_unknown_loss(model)
    family_of(model).prepare(model)
    if bits == 4:
        _tell_share(model)
    stop_gradients_at_frozen_vision(model)
    if not torch.cuda.is_available():
        _keep_gradients_on_cpu(model)
    return model, processor


def _refuse_stored(model_id, bits):
    """Raises ValueError for weights that are stored otherwise than asked for: transformers would keep them so.

    Or give them back as 16 bits that have lost what they lost, or ask for a package. Those of bitsandbytes in 4 bits
    are what bits=4 makes.
    """
    stored = stored_quantization(load_config(model_id))
    remedy = "name the model with 16-bit weights that it was made from"
    is_4bit = stored.get("quant_method", "bitsandbytes") == "bitsandbytes" and stored.get("load_in_4bit")
    if is_4bit and bits != 4:
        raise ValueError(f"{model_id} is stored in 4 bits: choose bits=4, or {remedy}")
    if stored and not is_4bit:
        how = "in 8 bits" if stored.get("load_in_8bit") else f"quantized ({stored.get('quant_method')})"
        raise ValueError(f"{model_id} is stored {how}, which is neither quantized again nor trained here: {remedy}")


def stored_quantization(config: PreTrainedConfig) -> dict:
    """What a configuration says of how the weights, or its language model's, are quantized; {} where they are not."""
    stored = (getattr(part, "quantization_config", None) for part in (config, config.get_text_config(decoder=True)))
    found = next(filter(None, stored), {})
    return found if isinstance(found, dict) else found.to_dict()


def _ask_for_no_unknown_loss(model):
    """TRL asks for a loss of the routers wherever a configuration weighs it; some models return none (Llama 4)."""
    returned = get_type_hints(type(model).forward).get("return")
    known = {name for kind in get_args(returned) for name in getattr(kind, "__dataclass_fields__", ())}
    text = model.config.get_text_config()
    if known and "aux_loss" not in known and getattr(text, "router_aux_loss_coef", 0):
        text.router_aux_loss_coef = 0.0


def load_processor(name: str | Path) -> ProcessorMixin:
    """The processor in a folder or on the hub, whose chat template was tried. Raises ValueError, OSError if missing."""
    with reading(name):
        processor = AutoProcessor.from_pretrained(name, trust_remote_code=False)
        if not isinstance(processor, ProcessorMixin):  # a tokenizer alone, where nothing else is found
            raise ValueError(f"it has a {type(processor).__name__}, and no processor for images")
    check_template(processor, name)
    if template := family_of(processor).trainable_template(processor):
        processor.chat_template = template
    return processor


def check_processor(processor: object, name: str = "processor", other: str = "") -> None:
    """Raises TypeError unless it is a processor, which has a tokenizer and is none.

    `name` is what it is called, `other` what could be passed instead.
    """
    if not hasattr(processor, "tokenizer"):
        remedy = f"pass the processor that vlm.load_model returns beside the model{other}"
        raise TypeError(f"{name} is a {type(processor).__name__}, and no processor: {remedy}")


def check_model(model: object) -> None:
    """Raises TypeError for what is no loaded model, as its name or its processor."""
    if not isinstance(model, torch.nn.Module):
        remedy = "pass the model that vlm.load_model returns, and its processor after it"
        raise TypeError(f"model is a {type(model).__name__}, and no loaded model: {remedy}")


def check_supported(name: str | Path, processor: ProcessorMixin) -> None:
    """Raises ValueError for a model that cannot be trained by chat; says where nobody has described its family."""
    config = load_config(name)
    kind = f"{name} (a {config.model_type})"
    if reason := UNTRAINABLE.get(config.model_type):
        raise ValueError(f"{kind} {reason}: it cannot be trained by chat")
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(f"{kind} is an encoder-decoder, whose decoder sees no prompt: it cannot be trained by chat")
    if not processor.chat_template:
        raise ValueError(f"{kind} has no chat template: load_model(..., chat_template=...) takes the text of one")
    family = family_of(config)
    if family.name not in FAMILIES:
        why = "transformers tells its parts, and rows with and without images are in batches of their own"
        print(f"{kind} is of no family that is described here: {why}")


def save_processor(processor: ProcessorMixin, folder: str | Path, beside_model: bool = False) -> None:
    """Writes a processor's files, which then do not say how the last batch was padded and cut.

    `beside_model`: `folder` has the whole model, so preprocessor_config.json is written, too, for tools that do not
    know processor_config.json. No file in it names code of its publisher any more, which is not in the folder.
    """
    if backend := getattr(processor.tokenizer, "backend_tokenizer", None):
        backend.no_padding()
        backend.no_truncation()
    processor.save_pretrained(folder)
    if beside_model:
        processor.image_processor.save_pretrained(folder)
    for file in Path(folder).glob("*config.json"):
        if '"auto_map"' in (text := file.read_text(encoding="utf-8")):
            content = json.loads(text, object_hook=_without_code)
            file.write_text(json.dumps(content, indent=2, ensure_ascii=False), encoding="utf-8")


def _without_code(entries):
    return {name: value for name, value in entries.items() if name != "auto_map"}


def load_weights(name: str | Path, **options: object) -> PreTrainedModel:
    """`AutoModelForImageTextToText.from_pretrained`, without code of others.

    Raises ValueError, FileNotFoundError for a missing shard: also where transformers would fill in what is not there.
    """
    if Path(name).is_dir() and (held := count_weights(name)) is not None:
        meta = meta_model(name)
        # 16 of 2 bits are stored in a number of 32; what is missing would take memory before it is noticed.
        most = held * (16 if stored_quantization(meta.config) else 1.05)
        if (described := sum(parameter.numel() for parameter in meta.parameters())) > most:
            sizes = f"describes {described:,} parameters, and its weights are {held:,}"
            raise ValueError(f"{Path(name) / 'config.json'} {sizes}: copy or download both again")
    with reading(name):
        model, found = AutoModelForImageTextToText.from_pretrained(
            name, trust_remote_code=False, output_loading_info=True, **options
        )
    if missing := sorted(found["missing_keys"]):
        raise ValueError(f"the weights of {name} lack {len(missing)} tensors of the model, such as {missing[0]}")
    return model


def _runs_on_unsloth(backend, processor):
    if choose_backend(backend) != "unsloth":
        return False
    family = family_of(processor)
    if not family.not_by_unsloth:
        return True
    why = f"Unsloth does not run {family.name}: {family.not_by_unsloth}"
    if backend == "unsloth":
        raise ValueError(f'{why}. Choose backend="auto" or backend="transformers"')
    print(f"{why}. transformers and peft run it")
    return False


def check_vocabulary(processor: ProcessorMixin, model: PreTrainedModel) -> None:
    """Raises ValueError where the tokenizer has tokens that the model lacks: see `missing_tokens`."""
    if what := missing_tokens(processor, model):
        number = 1 + max(processor.tokenizer.get_vocab().values())
        remedy = f"call model.resize_token_embeddings({number}), save that as the base to train, and train the new rows"
        raise ValueError(f"{what}: {remedy} (trainable_token_indices or modules_to_save of LoraConfig)")


def missing_tokens(processor: ProcessorMixin, model: PreTrainedModel) -> str:
    """What tokens the tokenizer has for which the model has no embedding, or no row in its head; "" where none.

    In the head an image token needs none.
    """
    check_processor(processor)
    vocabulary, image = processor.tokenizer.get_vocab(), getattr(processor, "image_token_id", None)
    rows, head = (part.weight.shape[0] for part in (model.get_input_embeddings(), model.get_output_embeddings()))
    missing = {token: index for token, index in vocabulary.items() if index >= rows or head <= index != image}
    if not missing:
        return ""
    what = f"{len(missing)} tokens, such as {min(missing, key=missing.get)!r}, for which the model has no embedding"
    where = "" if max(missing.values()) >= rows else " in its head"
    return f"the tokenizer has {what}{where} ({min(rows, head):,} rows, {1 + max(vocabulary.values()):,} needed)"


def set_max_pixels(processor: ProcessorMixin, max_pixels: int) -> None:
    """Caps the pixels of an image after resizing, or its tiles. Raises ValueError where a family has no such cap."""
    family_of(processor).set_max_pixels(processor.image_processor, max_pixels)


def not_in_4_bits(model_id: str | Path) -> list[str]:
    """Full names (bitsandbytes ignores short ones) of what keeps its bits: the topmost modules outside the decoder.

    And the linear layers inside that choose experts, or that the family says 4 bits break.
    """
    model = meta_model(model_id)
    family = family_of(model)
    tower_of, modules = family.tower_of, dict(model.named_modules())
    outside = [name for name in modules if name and tower_of(name) != "language"]
    linear = [n for n, m in modules.items() if isinstance(m, torch.nn.Linear) and tower_of(n) == "language"]
    topmost = [name for name in outside if tower_of(name.rpartition(".")[0]) == "language"]
    return topmost + [name for name in linear if not family.is_quantized(name)]


def _tell_share(model):
    """Says how much of a mixture has 4 bits: bitsandbytes leaves the weights of its experts as they are."""
    tower_of = family_of(model).tower_of
    weights = [p for n, p in model.named_parameters() if tower_of(n) == "language" and ".embed" not in n]
    if any(weight.dim() == 3 for weight in weights):
        states = [weight.quant_state for weight in weights if getattr(weight, "quant_state", None)]
        quantized = sum(state.shape.numel() for state in states)
        total = quantized + sum(weight.numel() for weight in weights if not getattr(weight, "quant_state", None))
        why = "those of its experts keep 16, for bitsandbytes quantizes linear layers"
        print(f"{quantized / total:.0%} of the language model's weights have 4 bits: {why}")


def meta_model(name: str | Path | PreTrainedConfig) -> PreTrainedModel:
    """The model in a folder, on the hub, or of a configuration, without its weights: on the meta device."""
    config = name if isinstance(name, PreTrainedConfig) else load_config(name)
    with reading(config.name_or_path or config.model_type), torch.device("meta"):
        return AutoModelForImageTextToText.from_config(config, trust_remote_code=False)


def _keep_gradients_on_cpu(model):
    """After a forward pass without gradients, 4-bit weights repacked for AVX512-BF16 would pass no gradient on."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
