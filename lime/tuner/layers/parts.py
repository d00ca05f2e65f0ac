"""What the ways through an adapted layer are given of it, so that none of them needs the layer itself."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from lime.tuner.settings import LimeSettings


class Adapter(NamedTuple):
    """One adapter of one layer.

    Attributes:
        key: name of layer and adapter, `layer:adapter`, by which routing is recorded and cached.
        settings: the adapter's.
        base: the frozen layer.
        delta: the update, a `lime.method.deltas.base.Delta`.
        router: a `lime.tuner.routing.router.Router`; nothing without LiME.
        modulators: experts (E, O), and shared modulator (O,) with its gamma (1,) where there is one; empty for a
            mixture.
        training: the layer is in training mode.
        ranks: modulators of the rank space, (E, R), where experts have them.
    """

    key: str
    settings: LimeSettings
    base: Any
    delta: Any
    router: Any
    modulators: tuple[Tensor, ...]
    training: bool
    ranks: Tensor | None = None


class Choice(NamedTuple):
    """The way that a call takes through a layer.

    Attributes:
        way: `torch`, `fused` or `decoding`.
        reason: why it is not `fused`; empty where it is.
        name: the one adapter that `fused` computes.
        dtype: of the wide products of `fused`.
    """

    way: str
    reason: str = ""
    name: str = ""
    dtype: torch.dtype | None = None
