"""The most bytes of tensors alive at once, by watching every operation: what a GPU's allocator would have to hold."""

import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Storages(TorchDispatchMode):
    """While it is entered, `peak` is the most bytes of all storages that were made since, and are still there.

    An operation's own scratch memory, which differs between devices, is not counted.
    """

    def __init__(self):
        super().__init__()
        self.live = self.peak = 0
        self.known = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        old = {leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)}
        output = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(output):
            if isinstance(leaf, torch.Tensor) and leaf.untyped_storage()._cdata not in old | self.known:
                self._enter(leaf.untyped_storage())
        return output

    def _enter(self, storage):
        self.known.add(storage._cdata)
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._leave, storage._cdata, storage.nbytes())

    def _leave(self, key, size):
        self.known.discard(key)
        self.live -= size
