"""The learned router of a MoE-PEFT baseline, `E x d_in` without bias: by token, or once for a whole sequence."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from lime.method import routing
from lime.method.deltas.mixture import MixtureDelta
from lime.method.selection import select
from lime.tuner.routing.call import ScopeCall
from lime.tuner.routing.router import Router, Shape
from lime.tuner.settings import LimeSettings


@dataclass(frozen=True)
class _Input:
    """What the router reads of a layer's input."""

    in_features: int
    out_features: int
    weight: Tensor


class MixtureRouter(Router):
    """Routing of one layer by one mixture.

    Args:
        As in `Router`.
    """

    def __init__(self, base: Shape, settings: LimeSettings, layer: str, dtype: torch.dtype):
        kind = settings.spec.delta_class()
        assert issubclass(kind, MixtureDelta)
        shape = _Input(kind.router_features(base.in_features), base.out_features, base.weight)
        super().__init__(shape, replace(settings, router="learned"), layer, dtype)
        self.kind, self.by_sequence = kind, settings.spec.by_sequence

    def route(self, x: Tensor, logits: Tensor | None, key: str, call: ScopeCall | None) -> Tensor:
        """Expert weights of every token, (B, T, E): windows, selection and recording included.

        Args:
            x: the layer's input, (B, T, I).
            logits: `R x`, (B, T, E); absent for a router by sequence.
            key: name of layer and adapter.

        Raises:
            ValueError: real tokens and padding cannot be told apart where that matters.
            RuntimeError: the key-value cache was filled without this adapter, so earlier decisions are unknown.
        """
        c = self.settings
        if self.by_sequence:
            probabilities = (call or ScopeCall(key)).decide(key, x, self._of_means)
        else:
            assert logits is not None
            probabilities = self._of_logits(logits)
            if c.n_gram > 1:
                probabilities = (call or ScopeCall(key)).share(key, probabilities, c.n_gram, c.window_anchor)
        weights = self._selected(probabilities)
        if call is not None:
            call.record(key, probabilities, weights)
        return weights

    def _of_means(self, mean: Tensor) -> Tensor:
        """Probabilities of each sequence, (B, E), from its mean embedding, (B, I)."""
        width = self.weight.shape[1]
        if width < mean.shape[-1]:
            mean = F.adaptive_avg_pool1d(mean.unsqueeze(-2), width).squeeze(-2)
        return self._of_logits(F.linear(mean, self.weight.to(mean.dtype)))

    def _of_logits(self, logits: Tensor) -> Tensor:
        """Probabilities, (…, E): one softmax over all gates, or one over those of each side; they sum to one."""
        logits = logits.to(routing.routing_dtype(logits.dtype))
        sides = self.kind.sides
        if sides == 1:
            return self._probabilities(logits)
        return self._probabilities(logits.unflatten(-1, (sides, -1))).flatten(-2) / sides

    def _selected(self, probabilities: Tensor) -> Tensor:
        c, sides = self.settings, self.kind.sides
        of_side = probabilities if sides == 1 else probabilities.unflatten(-1, (sides, -1)) * sides
        weights = select(
            of_side,
            c.selection,
            threshold=c.auto_topk_threshold,
            top_k=c.top_k,
            max_experts=c.max_experts,
            soft=c.soft,
            soft_temperature=c.soft_temperature,
        )
        if sides > 1:
            weights = weights.flatten(-2) / sides
        if self.kind.straight_through:
            weights = weights.detach() + (probabilities - probabilities.detach())
        return weights
