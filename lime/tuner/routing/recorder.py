"""Collecting the routing of one training step: balance losses with gradient, statistics as sums.

Fused layers hand over sums; of the others the recorder keeps references during the forward pass, and computes
once for all layers of a tower and only when asked. Nothing here reads a value on the host.

Shapes: L layers, N tokens, E experts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from lime.method.balance import BalanceTerms, balance_losses, masked_sum

Summand = TypeVar("Summand", Tensor, "LayerStatistics")


class RecordedCall(Protocol):
    """What the recorder reads of a tower's forward pass (`lime.tuner.routing.call.TowerCall`)."""

    mask_BT: Tensor | None
    unknown_padding: str


@dataclass
class LayerStatistics:
    """Sums over real tokens of one adapted layer (detached tensors on the layer's device).

    Attributes:
        probability_sum: sum of routing probabilities before selection, (E,).
        active_sum: number of tokens in whose modulation each expert carries weight, (E,).
        weight_sum: sum of weights after selection, (E,).
        entropy_sum: sum of the probabilities' entropy in nats, scalar.
        token_count: number of real tokens, scalar.
    """

    probability_sum: Tensor
    active_sum: Tensor
    weight_sum: Tensor
    entropy_sum: Tensor
    token_count: Tensor

    def __add__(self, other: LayerStatistics) -> LayerStatistics:
        return LayerStatistics(*(a + b.to(a.device) for a, b in zip(self.tensors(), other.tensors(), strict=True)))

    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        return self.probability_sum, self.active_sum, self.weight_sum, self.entropy_sum, self.token_count

    @property
    def mean_probability(self) -> Tensor:
        """Mean routing probability of each expert, (E,)."""
        return self.probability_sum / self.token_count.clamp_min(1)

    @property
    def usage(self) -> Tensor:
        """Share of tokens in whose modulation each expert carries weight, (E,)."""
        return self.active_sum / self.token_count.clamp_min(1)

    @property
    def experts_per_token(self) -> Tensor:
        """Mean number of experts that carry weight in a token's modulation, scalar."""
        return self.active_sum.sum() / self.token_count.clamp_min(1)

    @property
    def entropy(self) -> Tensor:
        """Mean entropy of the routing probabilities in nats, scalar; at most log E."""
        return self.entropy_sum / self.token_count.clamp_min(1)


class RoutingStatistics(dict[str, LayerStatistics]):
    """Statistics by layer name. Instances add up exactly over calls, micro-batches and processes."""

    def __add__(self, other: RoutingStatistics) -> RoutingStatistics:
        merged = RoutingStatistics(self)
        for name, statistics in other.items():
            _accumulate(merged, name, statistics)
        return merged

    def mean(self, of: Callable[[LayerStatistics], Tensor]) -> Tensor:
        """Mean over the layers of a scalar statistic, e.g. `statistics.mean(lambda layer: layer.entropy)`."""
        if not self:
            raise ValueError("no routing was recorded: run the model inside `lime.tuner.record(model)`")
        return torch.stack([of(layer).float() for layer in self.values()]).mean()


@dataclass(eq=False)
class _Entry:
    layer: str
    probabilities: Tensor
    weights: Tensor


@dataclass(eq=False)
class _Sums:
    """What a layer summed by itself: probabilities with gradient, (E,), and the other statistics, (2 E + 1,)."""

    layer: str
    probability_sum: Tensor
    statistics: Tensor
    tokens: int


@dataclass(eq=False)
class _Group:
    """Layers of one call with the same number of tokens and experts, stacked."""

    names: list[str]
    probabilities_LNE: Tensor
    weights_LNE: Tensor
    real_N: Tensor | None

    def count(self) -> Tensor:
        if self.real_N is not None:
            return self.real_N.sum()
        return self.probabilities_LNE.new_full((), float(self.probabilities_LNE.shape[1]))


class Recorder:
    """What the adapted layers routed while it was active. It holds the step's graph: drop it after the
    backward pass."""

    def __init__(self) -> None:
        self._entries: dict[RecordedCall, list[_Entry]] = {}
        self._sums: dict[RecordedCall, list[_Sums]] = {}

    def add(self, call: RecordedCall, layer: str, probabilities: Tensor, weights: Tensor) -> None:
        """Called by the layers: routing probabilities before and weights after selection, (..., E)."""
        _check_padding(call, layer)
        self._entries.setdefault(call, []).append(_Entry(layer, probabilities, weights))

    def add_sums(
        self, call: RecordedCall, layer: str, probability_sum: Tensor, statistics: Tensor, tokens: int
    ) -> None:
        """Called by fused layers: sums over the real ones of `tokens` tokens. `statistics` holds the tokens in which
        each expert carries weight, the sum of the weights, and that of the entropy, (2 E + 1,)."""
        _check_padding(call, layer)
        self._sums.setdefault(call, []).append(_Sums(layer, probability_sum, statistics, tokens))

    def __len__(self) -> int:
        return sum(len(layers) for kind in (self._entries, self._sums) for layers in kind.values())

    def _summed(self) -> Iterator[tuple[_Sums, Tensor]]:
        """Sums of fused layers, and the number of real tokens behind them."""
        for call, layers in self._sums.items():
            real = None if call.mask_BT is None else call.mask_BT.sum().to(layers[0].statistics.dtype)
            counts: dict[int, Tensor] = {}
            for sums in layers:
                if sums.tokens not in counts:
                    counts[sums.tokens] = sums.statistics.new_full((), float(sums.tokens)) if real is None else real
                yield sums, counts[sums.tokens]

    def _groups(self) -> Iterator[_Group]:
        for call, entries in self._entries.items():
            by_shape: dict[torch.Size, list[_Entry]] = {}
            for entry in entries:
                by_shape.setdefault(entry.probabilities.shape, []).append(entry)
            for same_shape in by_shape.values():
                probabilities = torch.stack([entry.probabilities for entry in same_shape]).flatten(1, -2)
                weights = torch.stack([entry.weights.detach() for entry in same_shape]).flatten(1, -2)
                real = None if call.mask_BT is None else call.mask_BT.flatten().to(probabilities.dtype)
                yield _Group([entry.layer for entry in same_shape], probabilities, weights, real)

    def balance(self) -> BalanceTerms:
        """Balance losses (Eq. 5), each averaged over the adapted layers that routed; they carry gradient.

        A layer that was called several times counts once, over all its tokens.

        Raises:
            ValueError: nothing was recorded.
        """
        sums: dict[str, Tensor] = {}
        counts: dict[str, Tensor] = {}
        for group in self._groups():
            sum_LE, count = masked_sum(group.probabilities_LNE, group.real_N), group.count()
            for name, sum_E in zip(group.names, sum_LE.unbind(0), strict=True):
                _accumulate(sums, name, sum_E)
                _accumulate(counts, name, count)
        for layer_sums, count in self._summed():
            _accumulate(sums, layer_sums.layer, layer_sums.probability_sum)
            _accumulate(counts, layer_sums.layer, count)
        if not sums:
            raise ValueError(
                "no routing was recorded: run the model inside `lime.tuner.record(model)`, with LiME switched on"
            )
        importances, divergences = [], []
        for width in sorted({sum_E.shape[-1] for sum_E in sums.values()}):
            names = [name for name, sum_E in sums.items() if sum_E.shape[-1] == width]
            importance_L, kl_L = balance_losses(
                torch.stack([sums[name] for name in names]), torch.stack([counts[name] for name in names])
            )
            importances.append(importance_L)
            divergences.append(kl_L)
        return BalanceTerms(torch.cat(importances).mean(), torch.cat(divergences).mean())

    @torch.no_grad()
    def statistics(self) -> RoutingStatistics:
        """Sums of this record, by layer; empty when nothing was recorded."""
        merged = RoutingStatistics()
        for group in self._groups():
            p_LNE, w_LNE, real_N = group.probabilities_LNE.detach(), group.weights_LNE, group.real_N
            entropy_LN1 = torch.special.entr(p_LNE).sum(-1, keepdim=True)
            probability_LE = masked_sum(p_LNE, real_N)
            active_LE = masked_sum((w_LNE > 0).to(p_LNE.dtype), real_N)
            weight_LE = masked_sum(w_LNE, real_N)
            entropy_L = masked_sum(entropy_LN1, real_N).squeeze(-1)
            count = group.count()
            for i, name in enumerate(group.names):
                layer = LayerStatistics(probability_LE[i], active_LE[i], weight_LE[i], entropy_L[i], count)
                _accumulate(merged, name, layer)
        for layer_sums, count in self._summed():
            E = layer_sums.probability_sum.shape[0]
            active_E, weight_E, entropy_1 = layer_sums.statistics.split([E, E, 1])
            probability_E, entropy = layer_sums.probability_sum.detach(), entropy_1.squeeze(0)
            layer = LayerStatistics(probability_E, active_E, weight_E, entropy, count)
            _accumulate(merged, layer_sums.layer, layer)
        return merged


def _accumulate(sums: dict[str, Summand], layer: str, value: Summand) -> None:
    sums[layer] = sums[layer] + value if layer in sums else value


class TokenRecorder(Recorder):
    """A recorder that keeps the routing of every token instead.

    Attributes:
        calls: of each layer, by its full name, one pair for each call: probabilities and weights, (N, E).
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[str, list[tuple[Tensor, Tensor]]] = {}

    def add(self, call: RecordedCall, layer: str, probabilities: Tensor, weights: Tensor) -> None:
        pair = (probabilities.detach().flatten(0, -2), weights.detach().flatten(0, -2))
        self.calls.setdefault(layer.rpartition(":")[0], []).append(pair)


def _check_padding(call: RecordedCall, layer: str) -> None:
    if call.unknown_padding:
        raise ValueError(f"{layer}: statistics count real tokens, but {call.unknown_padding}")
