"""What a frozen vision tower sees in a picture, computed once instead of in every epoch."""

import os
import tempfile
from importlib.metadata import version
from pathlib import Path

import torch
import xxhash
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from transformers.modeling_outputs import BaseModelOutputWithPooling

from vlmhelpers.common.version import VERSION
from vlmhelpers.families.towers import is_frozen

# Beside the features themselves, Qwen3-VL hands on those of earlier layers.
_DEEP = "deepstack_features"


def remember_features(model, folder):
    """Makes the frozen vision tower of a Qwen-VL model compute a picture's features once, and keeps them in `folder`.

    From the second epoch on, a step costs what the language model costs. The features are those that the tower gives
    anyway, to rounding: it computes them beside other pictures than later batches have. Answers read them, too.

    model: Qwen2-VL, Qwen2.5-VL or Qwen3-VL, with or without adapters, with DDP but not sharded. folder: takes a file
    per picture, of tokens x hidden size numbers (Qwen3-VL: that for each of its layers that hand features on), for
    this model's and other runs' next use. Pictures are told apart by their pixels, towers by their weights: whatever
    changes is computed again. Delete the folder to free the disk.

    A tower that is trained must not be remembered: raises ValueError, also in a later step. `forget_features` ends it.
    """
    tower = _tower(model)
    forget_features(model)
    tower.forward = _Remembering(tower, tower.forward, folder)
    tower.forward.check_frozen()


def forget_features(model):
    """Lets the vision tower compute every time again."""
    tower = _tower(model)
    if isinstance(tower.forward, _Remembering):
        tower.forward = tower.forward.compute


def _tower(model):
    for name, module in model.named_modules():
        if name.rpartition(".")[2] == "visual" and hasattr(module, "spatial_merge_size"):
            return module
    raise ValueError(f"{type(model).__name__}: only the vision towers of Qwen-VL can be remembered")


class _Remembering:
    """Stands in for the `forward` of a tower."""

    def __init__(self, tower, compute, folder):
        self.tower, self.compute = tower, compute
        self.folder = Path(folder).absolute() / _fingerprint(tower)
        self.folder.mkdir(parents=True, exist_ok=True)

    def check_frozen(self):
        if not is_frozen(self.tower):
            raise ValueError(
                "the vision tower is trained, so what it saw before is out of date: freeze it "
                "(lora_targets(model, vision=False)), or call forget_features(model)"
            )

    def __call__(self, hidden_states, grid_thw, **options):
        """The tower's output, without the fields that only the tower itself needs.

        `hidden_states` (patches of all pictures, numbers per patch), `grid_thw` (pictures, 3) in patches.
        """
        self.check_frozen()
        files = [self._file(*picture) for picture in self._pictures(hidden_states, grid_thw)]
        stored = [_load(file) for file in files]
        if None in stored:
            with torch.no_grad():  # gradient checkpointing asks for gradients of the pixels, which nobody uses
                output = self.compute(hidden_states, grid_thw=grid_thw, **options)
            stored = self._split(output, grid_thw)
            for file, features in zip(files, stored, strict=True):
                _save(features, file)
        joined = {name: torch.cat([f[name] for f in stored]).to(hidden_states.device) for name in stored[0]}
        output = BaseModelOutputWithPooling(pooler_output=joined.pop("features"))
        if joined:
            output[_DEEP] = [joined[f"{_DEEP}.{i}"] for i in range(len(joined))]
        return output

    def _pictures(self, pixels, grid):
        shapes = grid.tolist()
        return zip(pixels.split([t * h * w for t, h, w in shapes]), shapes, strict=True)

    def _file(self, pixels, shape):
        device = pixels.device.type
        precision = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else pixels.dtype
        told = xxhash.xxh3_128(_bytes(pixels))
        told.update(f"{shape} {pixels.dtype} {precision}".encode())
        key = told.hexdigest()
        return self.folder / key[:2] / f"{key}.safetensors"

    def _split(self, output, grid):
        tokens = (grid.prod(-1) // self.tower.spatial_merge_size**2).tolist()
        deep = {f"{_DEEP}.{i}": layer for i, layer in enumerate(getattr(output, _DEEP, None) or [])}
        parts = {name: whole.split(tokens) for name, whole in ({"features": output.pooler_output} | deep).items()}
        return [dict(zip(parts, values, strict=True)) for values in zip(*parts.values(), strict=True)]


def _fingerprint(tower):
    """What tells the features of one tower from those of others: a hash of its weights and of what computes them."""
    computed_by = f"{VERSION} {version('torch')} {version('transformers')} {tower.config._attn_implementation}"
    told = xxhash.xxh3_128(computed_by.encode())
    for name, tensor in tower.state_dict().items():
        told.update(name.encode())
        told.update(_bytes(tensor))
    return told.hexdigest()


def _bytes(tensor):
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data


def _load(file):
    """The features in a file, or None where no whole file is."""
    try:
        return load_file(file)
    except (OSError, SafetensorError):
        return None


def _save(features, file):
    """Writes a file whole: other processes see all of it or nothing."""
    file.parent.mkdir(exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=file.parent, suffix=".draft", delete=False) as draft:
        draft.write(save({name: tensor.contiguous().cpu() for name, tensor in features.items()}))
    os.replace(draft.name, file)
