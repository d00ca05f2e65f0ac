"""Counts that do not depend on the machine: activations kept for the backward pass, elements moved through memory,
and the peak of live tensors.

Elements and passes are counted where operations are dispatched. A kernel of its own (Triton) is not dispatched: the
counts are those of the torch path. What an operation needs inside itself is not counted either.
"""

from __future__ import annotations

import contextlib
import math
import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


@contextlib.contextmanager
def kept_storages(*known: nn.Module | Tensor) -> Iterator[dict[int, int]]:
    """Collect what the forward pass inside keeps for the backward pass: address of each storage to its bytes.

    Args:
        known: modules and tensors whose own storages do not count (weights, the input).
    """
    modules = [one for one in known if isinstance(one, nn.Module)]
    own = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
    ignored = {_address(tensor) for tensor in [*own, *_tensors(known)]}
    kept: dict[int, int] = {}
    held: list[Tensor] = []  # so that no address is used twice

    def pack(tensor: Tensor) -> Tensor:
        address = _address(tensor)
        if address not in ignored and address not in kept:
            kept[address] = tensor.untyped_storage().nbytes()
            held.append(tensor.detach())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield kept


class Traffic(TorchDispatchMode):
    """Counts the elements that operations read and write; views move nothing. A broadcast tensor counts once."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name = func.overloadpacket.__name__
        if name.startswith(("empty", "new_empty", "detach", "alias")) or func.is_view:
            return out
        inputs = _tensors([args, {key: value for key, value in kwargs.items() if key != "out"}])
        outputs = _tensors(out)
        shared = set(map(_address, inputs))
        if not func._schema.is_mutable and outputs and all(_address(tensor) in shared for tensor in outputs):
            return out
        if name in ("copy_", "fill_", "zero_"):
            inputs = inputs[1:]
        self.elements += sum(map(_elements, inputs)) + sum(map(_elements, outputs))
        return out


class LiveTensors(TorchDispatchMode):
    """Follows the storages that operations make: `peak` bytes were alive at once, beyond what was there before."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = set(map(_address, _tensors([args, kwargs])))
        out = func(*args, **(kwargs or {}))
        for tensor in _tensors(out):
            key, storage = _address(tensor), tensor.untyped_storage()
            if key not in before and key not in self._seen:
                self._seen.add(key)
                self.live += storage.nbytes()
                self.peak = max(self.peak, self.live)
                weakref.finalize(storage, self._freed, key, storage.nbytes())
        return out

    def _freed(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.live -= size


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _elements(tensor: Tensor) -> int:
    return math.prod(size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride or not size)
