"""A frozen vision tower: kept out of the backward pass, and computed once per image instead of in every epoch."""

from importlib.metadata import version
from pathlib import Path

import torch
from torch.utils._pytree import tree_map_only
from transformers import PreTrainedModel

from vlmhelpers.common.digests import digest, tensors_digest
from vlmhelpers.common.files import remove_abandoned
from vlmhelpers.common.tensor_files import load_tensors, save_tensors
from vlmhelpers.common.version import VERSION
from vlmhelpers.families import FAMILIES, family_of
from vlmhelpers.families.towers import is_frozen, no_grad_if_frozen


def stop_gradients_at_frozen_vision(model: PreTrainedModel) -> None:
    """Makes the vision tower of `model` compute without gradients for as long as nothing in it is trained.

    Gradient checkpointing asks for gradients of all embeddings (`enable_input_require_grads`), of Qwen2.5-VL's pixels,
    too: its frozen tower would be computed twice and differentiated for nothing.
    """
    tower_of = family_of(model).tower_of
    towers = [m for n, m in model.named_modules() if isinstance(m, PreTrainedModel) and tower_of(n) == "vision"]
    inside = {id(part) for tower in towers for part in tower.modules() if part is not tower}
    for tower in towers:
        if id(tower) not in inside and not isinstance(tower.forward, _NoGradIfFrozen):
            tower.forward = _NoGradIfFrozen(tower)


class _NoGradIfFrozen:
    """Stands in for a tower's `forward`; an object, so that a deep copy of the model has a tower of its own.

    Pixels get the tower's type, as not all models see to that.
    """

    def __init__(self, tower):
        self.tower, self.compute = tower, tower.forward

    def __call__(self, *args, **kwargs):
        with no_grad_if_frozen(self.tower):
            args, kwargs = tree_map_only(torch.Tensor, self._as_tower, (args, kwargs))
            return self.compute(*args, **kwargs)

    def _as_tower(self, tensor):
        return tensor.to(self.tower.dtype) if tensor.is_floating_point() else tensor


def cache_vision_features(model: torch.nn.Module, folder: str | Path) -> None:
    """Makes the frozen vision tower of `model` compute an image's features once, in training and inference.

    model: of a family that `caches_features`, with or without adapters, with DDP but not sharded. folder: takes a file
    per image, named by pixels and weights, of tokens x hidden size numbers for each layer that hands features on.
    Raises ValueError, also in a later step, for a tower that is trained.
    """
    stop_caching_vision_features(model)
    tower = _tower(model)
    tower.forward = _CachedFeatures(family_of(model), tower, folder)
    tower.forward.check_frozen()


def stop_caching_vision_features(model: torch.nn.Module) -> None:
    """Lets the vision tower compute every time again."""
    tower = _tower(model)
    if isinstance(tower.forward, _CachedFeatures):
        tower.forward = tower.forward.compute


def _tower(model):
    family = family_of(model)
    if not family.caches_features:
        able = ", ".join(name for name, other in FAMILIES.items() if other.caches_features)
        raise ValueError(f"{type(model).__name__}: its features cannot be cached, only those of {able}")
    return family.feature_tower(model)


class _CachedFeatures:
    """Stands in for the `forward` of a tower."""

    def __init__(self, family, tower, folder):
        self.family, self.tower, self.compute = family, tower, tower.forward
        computed_by = (VERSION, version("torch"), version("transformers"), tower.config._attn_implementation)
        self.folder = Path(folder).absolute() / digest(*computed_by, tensors_digest(tower.state_dict().items()))
        self.folder.mkdir(parents=True, exist_ok=True)
        for part in self.folder.iterdir():
            remove_abandoned(part)

    def check_frozen(self):
        if not is_frozen(self.tower):
            raise ValueError(
                "the vision tower is trained, so its cached features are out of date: freeze it "
                "(lora_targets(model, vision=False)), or call stop_caching_vision_features(model)"
            )

    def __call__(self, hidden_states, grid_thw, **options):
        """The tower's output for (patches of all images, numbers per patch) and (images, 3) in patches."""
        self.check_frozen()
        files = [self._file(*image) for image in self.family.split_pixels(hidden_states, grid_thw)]
        stored = [_load(file) for file in files]
        if None in stored:
            with torch.no_grad():  # gradient checkpointing asks for gradients of the pixels, which nobody uses
                output = self.compute(hidden_states, grid_thw=grid_thw, **options)
            stored = self.family.split_features(self.tower, output, grid_thw)
            for file, features in zip(files, stored, strict=True):
                save_tensors(features, file)
        return self.family.join_features(stored, hidden_states.device)

    def _file(self, pixels, shape):
        device = pixels.device.type
        precision = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else pixels.dtype
        key = digest(shape, precision, tensors_digest([("pixels", pixels)]))
        return self.folder / key[:2] / f"{key}.safetensors"


def _load(file):
    try:
        return load_tensors(file)
    except FileNotFoundError:
        return None
