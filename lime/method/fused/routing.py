"""Routing and selection of the fused path, forward and backward in closed form.

The same as `lime.method.routing`, `windows` and `selection`, but experts-major: every operation runs over tokens that
lie next to each other in memory, and the backward pass is written out by hand, so that between the passes only the
signals are kept.

Shapes: N tokens, E experts; signals carry a leading 2 for (frozen output, update).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lime.method.routing import DIVISOR_FLOOR, gradient_divisor
from lime.method.selection import SOFT_FLOOR


@dataclass(frozen=True)
class RoutingPlan:
    """How a layer routes; the options of the same name in `lime.tuner.LimeSettings`.

    Attributes:
        learned: logits come from a learned router, not from the two signals.
        norm: `slice` or `tensor`; `token` needs whole rows and is left to the unfused path.
    """

    learned: bool = False
    gamma_routing: float = 0.7
    temperature: float = 0.5
    norm: str = "slice"
    selection: str = "auto"
    threshold: float = 0.7
    top_k: int = 2
    max_experts: int | None = None
    soft: bool = False
    soft_temperature: float = 0.5


class Signals(NamedTuple):
    """Normalised routing signals `values`, (2, E, N), and what they were divided by, (2, 1, N) or (2, 1, 1)."""

    values_2EN: Tensor
    divisor: Tensor


class Selected(NamedTuple):
    """Weights after selection, (E, N), and what their backward pass needs.

    Attributes:
        chosen_EN: the hard set; absent where all experts take part.
        total_N: the divisor of the weights; absent for `dense`.
        limit_1N: of a soft mask, the expert that sets its limit.
        mask_EN: the soft mask.
    """

    weights_EN: Tensor
    chosen_EN: Tensor | None = None
    total_N: Tensor | None = None
    limit_1N: Tensor | None = None
    mask_EN: Tensor | None = None


# -- from signals to logits --------------------------------------------------------------------------------------------


def normalise(signals_2EN: Tensor, plan: RoutingPlan, considered_N: Tensor | None) -> Signals:
    """Both signals divided by their norms, clamped from below; in place.

    Args:
        considered_N: tokens that count in the maximum of `tensor`; all when absent.
    """
    magnitude_2EN = signals_2EN.abs()
    if plan.norm == "slice":
        divisor = magnitude_2EN.amax(1, keepdim=True)
    else:
        if considered_N is not None:
            magnitude_2EN = magnitude_2EN.mul_(considered_N)
        divisor = magnitude_2EN.amax((1, 2), keepdim=True)
    divisor = divisor.clamp_min_(DIVISOR_FLOOR)
    return Signals(signals_2EN.div_(divisor), divisor)


def normalise_backward(grad_2EN: Tensor, signals: Signals, plan: RoutingPlan, considered_N: Tensor | None) -> Tensor:
    """Gradient of the raw signals, bounded as in `lime.method.routing.gradient_divisor`; in place of `grad_2EN`.
    Entries that tie for the largest share its gradient."""
    values_2EN, divisor = signals
    bounded = gradient_divisor(divisor, divisor[:1])  # of the frozen signal: its own
    largest = values_2EN.abs().ge_(1.0)
    if plan.norm == "slice":
        through_divisor = torch.linalg.vecdot(grad_2EN, values_2EN, dim=1).unsqueeze(1)
        ties = largest.sum(1, keepdim=True)
    else:
        if considered_N is not None:
            largest = largest.mul_(considered_N)
        through_divisor = (grad_2EN * values_2EN).sum((1, 2), keepdim=True)
        ties = largest.sum((1, 2), keepdim=True)
    through_divisor = through_divisor.div_(ties.clamp_min_(1.0))
    return grad_2EN.addcmul_(largest.mul_(values_2EN), through_divisor, value=-1).div_(bounded)


def blend(signals: Signals, plan: RoutingPlan) -> Tensor:
    """Logits `((1 - g) norm(z)[S] + g norm(zhat)[S]) / tau`, (E, N)."""
    frozen_EN, update_EN = signals.values_2EN
    return torch.mul(frozen_EN, (1 - plan.gamma_routing) / plan.temperature).add_(
        update_EN, alpha=plan.gamma_routing / plan.temperature
    )


def blend_backward(grad_EN: Tensor, plan: RoutingPlan) -> Tensor:
    """Gradient of the normalised signals, (2, E, N)."""
    grad_2EN = grad_EN.new_empty(2, *grad_EN.shape)
    torch.mul(grad_EN, (1 - plan.gamma_routing) / plan.temperature, out=grad_2EN[0])
    torch.mul(grad_EN, plan.gamma_routing / plan.temperature, out=grad_2EN[1])
    return grad_2EN


def softmax_backward(grad_EN: Tensor, probabilities_EN: Tensor) -> Tensor:
    """Gradient of the logits."""
    return torch._softmax_backward_data(grad_EN, probabilities_EN, 0, grad_EN.dtype)


# -- windows -----------------------------------------------------------------------------------------------------------


def share(values_EN: Tensor, anchor_N: Tensor | None) -> Tensor:
    """The values of each token's deciding token, (E, N)."""
    return values_EN if anchor_N is None else values_EN.index_select(1, anchor_N)


def share_backward(grad_EN: Tensor, anchor_N: Tensor | None) -> Tensor:
    """Gradient of the deciding tokens' own values, (E, N)."""
    return grad_EN if anchor_N is None else torch.zeros_like(grad_EN).index_add_(1, anchor_N, grad_EN)


# -- selection ---------------------------------------------------------------------------------------------------------


def select(probabilities_EN: Tensor, plan: RoutingPlan, chosen_EN: Tensor | None = None) -> Selected:
    """Weights of the experts that take part (Eq. 4).

    Args:
        chosen_EN: the hard set, where it was found before.
    """
    if plan.selection == "dense":
        return Selected(probabilities_EN)
    if plan.soft:
        return _select_softly(probabilities_EN, plan)
    if chosen_EN is None:
        chosen_EN = _hard_set(probabilities_EN, plan)
    weights_EN = probabilities_EN * chosen_EN
    total_N = weights_EN.sum(0)
    return Selected(weights_EN.div_(total_N), chosen_EN, total_N)


def _hard_set(probabilities_EN: Tensor, plan: RoutingPlan) -> Tensor:
    if plan.selection == "topk":
        return _largest(probabilities_EN, plan.top_k)
    chosen_EN = probabilities_EN >= probabilities_EN.amax(0).mul_(plan.threshold)
    if plan.max_experts is not None and plan.max_experts < len(probabilities_EN):
        chosen_EN = chosen_EN.logical_and_(_largest(probabilities_EN, plan.max_experts))
    return chosen_EN


def _largest(probabilities_EN: Tensor, count: int) -> Tensor:
    index_KN = probabilities_EN.topk(min(count, len(probabilities_EN)), 0).indices
    return torch.zeros_like(probabilities_EN, dtype=torch.bool).scatter_(0, index_KN, True)


def _select_softly(probabilities_EN: Tensor, plan: RoutingPlan) -> Selected:
    if plan.selection == "auto":
        limit_1N, index_1N = probabilities_EN.max(0, keepdim=True)
        limit_1N = limit_1N * plan.threshold
    else:
        values, indices = probabilities_EN.topk(min(plan.top_k, len(probabilities_EN)), 0)
        limit_1N, index_1N = values[-1:], indices[-1:]
    mask_EN = ((probabilities_EN - limit_1N) / plan.soft_temperature).sigmoid_()
    weights_EN = probabilities_EN * mask_EN
    total_N = weights_EN.sum(0).add_(SOFT_FLOOR)
    return Selected(weights_EN.div_(total_N), None, total_N, index_1N, mask_EN)


def select_backward(grad_EN: Tensor, probabilities_EN: Tensor, selected: Selected, plan: RoutingPlan) -> Tensor:
    """Gradient of the probabilities from that of the weights; a hard set counts as a constant."""
    if selected.total_N is None:
        return grad_EN
    inner_N = torch.linalg.vecdot(grad_EN, selected.weights_EN, dim=0)
    kept_EN = (grad_EN - inner_N).div_(selected.total_N)
    if selected.chosen_EN is not None:
        return kept_EN.mul_(selected.chosen_EN)
    mask_EN, index_1N = selected.mask_EN, selected.limit_1N
    assert mask_EN is not None
    assert index_1N is not None
    through_mask_EN = (kept_EN * probabilities_EN).mul_(mask_EN).mul_(1 - mask_EN).div_(plan.soft_temperature)
    factor = plan.threshold if plan.selection == "auto" else 1.0
    kept_EN = kept_EN.mul_(mask_EN).add_(through_mask_EN)
    return kept_EN.scatter_add_(0, index_1N, through_mask_EN.sum(0, keepdim=True).mul_(-factor))
