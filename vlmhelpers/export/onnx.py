"""A merged model as three ONNX graphs, made by torch's exporter: vision, embedding and decoder."""

import json
import warnings
from importlib.util import find_spec
from pathlib import Path

import torch
from PIL import Image
from transformers import DynamicCache

from vlmhelpers.common.files import atomic_folder
from vlmhelpers.families import Family, family_of
from vlmhelpers.models.loading import load_processor, load_weights, save_processor

PARTS = ("vision", "embedding", "decoder")
PARTS_FILE = "onnx_parts.json"
_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
# Of an example: more than one of each, or torch takes the number for a constant, and no two alike.
_ROWS, _PAST, _TOKENS = 2, 3, 5


def to_onnx(merged: str | Path, out: str | Path) -> Path:
    """Exports the merged model in the folder `merged` as 32-bit graphs to `out`, and returns that Path.

    They take any number of rows and tokens, and images of any size. `vision.onnx`: what the family's `vision_inputs`
    makes of the processor's pixels -> `features` (tokens, hidden size) for the places of the image tokens, and for some
    families `deep.0`, ..., which the decoder adds there after its first layers. `embedding.onnx`: `input_ids` (n, t) ->
    `inputs_embeds` (n, t, hidden size). `decoder.onnx`: these, `attention_mask` (n, past + t), `position_ids`, the
    `past_key_values` (n, heads, past, head size) of each layer and `logits_at`, indices of tokens -> `logits` (n,
    indices, vocabulary) and `present`, the next `past_key_values`. `onnx_parts.json` has the numbers that belong to
    them, and `OnnxModel` is how they fit together. Disk and memory take 4 bytes per parameter, and memory some more.

    Raises ValueError for a family that cannot be exported, ImportError without the packages of the extra "onnx",
    FileExistsError for an `out` that is not empty. The write is atomic.
    """
    family = exportable(merged)
    processor, model = load_processor(merged), load_weights(merged, dtype=torch.float32).eval()
    with atomic_folder(out) as folder, torch.no_grad():
        deep = _export_vision(family, model, processor, folder)
        _export_embedding(model, folder)
        _export_decoder(family, model, deep, folder)
        save_processor(processor, folder)
        model.config.save_pretrained(folder)
        (folder / PARTS_FILE).write_text(json.dumps(_numbers(family, model), indent=2), encoding="utf-8")
    return Path(out)


def exportable(model: str | Path) -> Family:
    """The family of a model that can be exported. Raises ValueError for others, ImportError as `need_onnx`."""
    need_onnx()
    family = family_of(model)
    if family.not_in_onnx:
        raise ValueError(f"{model} is of {family.name}, which has no ONNX export here: {family.not_in_onnx}")
    return family


def need_onnx() -> None:
    """Raises ImportError where a package of the extra "onnx" is missing."""
    if missing := [package for package in _PACKAGES if not find_spec(package)]:
        raise ImportError(f"ONNX needs {' and '.join(missing)}: pip install {' '.join(_PACKAGES)}")


def _numbers(family, model):
    ends = model.generation_config.eos_token_id
    return {
        "image_token_id": model.config.image_token_id,
        "eos_token_ids": ends if isinstance(ends, list) else [ends],
        # Where a row grows beyond so many tokens, all of it is computed anew, without `past_key_values`.
        "restart_length": family.restart_length(model.config),
    }


# The parts as torch's exporter takes them: tensors in, tensors out


class _Embedding(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.embeddings = model.get_input_embeddings()

    def forward(self, input_ids):
        return self.embeddings(input_ids)


class _Vision(torch.nn.Module):
    def __init__(self, family, model, names):
        super().__init__()
        self.family, self.model, self.names = family, model, names

    def forward(self, *tensors):
        return self.family.run_vision(self.model, **dict(zip(self.names, tensors, strict=True)))


class _Decoder(torch.nn.Module):
    """The decoder and the head. The mask is made here: that of transformers depends on the lengths at export."""

    def __init__(self, family, model):
        super().__init__()
        self.family, self.model = family, model

    def forward(self, inputs_embeds, attention_mask, position_ids, logits_at, past, deep=()):
        cache, total = DynamicCache(past), attention_mask.shape[1]
        seen = torch.arange(total) <= torch.arange(total - inputs_embeds.shape[1], total)[:, None]
        masked = ~(seen & attention_mask[:, None, None].bool())
        # Not minus infinity: padding sees nothing, and its states would be NaN, which times a weight of 0 stays NaN.
        mask = torch.zeros(masked.shape).masked_fill(masked, torch.finfo(torch.float32).min)
        inputs = {"inputs_embeds": inputs_embeds, "attention_mask": mask, "position_ids": position_ids}
        states = self.family.run_decoder(self.model, deep, **inputs, past_key_values=cache, use_cache=True)
        logits = self.model.get_output_embeddings()(states.last_hidden_state[:, logits_at])
        return [logits, *(tensor for pair in _pairs(cache) for tensor in pair)]


def _pairs(cache):
    return [(layer.keys, layer.values) for layer in cache.layers]


def _export_vision(family, model, processor, folder):
    """Writes the graph, and returns how many states it gives besides the features."""
    images = [Image.new("RGB", size) for size in ((64, 96), (160, 96))]
    inputs = family.vision_inputs(model, processor.image_processor(images, return_tensors="pt"))
    part = _Vision(family, model, list(inputs))
    deep = len(part(*inputs.values())) - 1
    outputs, shapes = ["features", *(f"deep.{i}" for i in range(deep))], tuple({0: f"all_{name}"} for name in inputs)
    _write(folder / "vision.onnx", part, inputs.values(), [shapes], list(inputs), outputs)
    return deep


def _export_embedding(model, folder):
    part, ids = _Embedding(model), torch.zeros(_ROWS, _TOKENS, dtype=torch.long)
    _write(folder / "embedding.onnx", part, [ids], [_axes(0, 1)], ["input_ids"], ["inputs_embeds"])


def _export_decoder(family, model, deep, folder):
    inputs, layers = _decoder_example(family, model, deep)
    first = inputs["position_ids"].ndim - 2  # some have positions for each axis of an image
    shapes = [_axes(0, 1), {0: "rows", 1: "all_tokens"}, _axes(first, first + 1), {0: "logits"}]
    shapes += [[(_axes(0, 2, "past"),) * 2] * layers] + [[_axes(0, 1)] * deep] * bool(deep)
    kept = [f"{i}.{kind}" for i in range(layers) for kind in ("key", "value")]
    names = [name for name in inputs if name not in ("past", "deep")]
    names += [*(f"past_key_values.{name}" for name in kept), *(f"deep.{i}" for i in range(deep))]
    outputs = ["logits", *(f"present.{name}" for name in kept)]
    _write(folder / "decoder.onnx", _Decoder(family, model), inputs.values(), shapes, names, outputs)


def _decoder_example(family, model, deep):
    """(what `_Decoder` takes, by name and in its order; the number of layers)."""
    ids = torch.zeros(_ROWS, _PAST + _TOKENS, dtype=torch.long)
    mask, embeds, cache = torch.ones_like(ids), model.get_input_embeddings()(ids), DynamicCache()
    positions = family.positions(model, {"input_ids": ids, "attention_mask": mask, "mm_token_type_ids": ids})
    # For keys and values of the shapes that the model has.
    whole = {"inputs_embeds": embeds, "position_ids": positions, "past_key_values": cache, "use_cache": True}
    family.run_decoder(model, [embeds] * deep, **whole)
    past = [(keys[:, :, :_PAST], values[:, :, :_PAST]) for keys, values in _pairs(cache)]
    inputs = {"inputs_embeds": embeds[:, _PAST:], "attention_mask": mask, "position_ids": positions[..., _PAST:]}
    inputs |= {"logits_at": torch.arange(_TOKENS), "past": past}
    return inputs | ({"deep": [embeds[:, _PAST:]] * deep} if deep else {}), len(past)


def _axes(rows, tokens, name="tokens"):
    return {rows: "rows", tokens: name}


def _write(path, part, inputs, shapes, names, outputs):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what it has to say about axes of equal length
        program = torch.onnx.export(
            part.eval(),
            tuple(inputs),
            dynamo=True,
            dynamic_shapes=tuple(shapes),
            input_names=names,
            output_names=outputs,
            verbose=False,
        )
        program.save(path, external_data=True)
