"""The backward pass of routing and selection (Eq. 3 and 4), in closed form.

The forward pass is that of `lime.method.routing` and `selection`, experts before tokens. Its gradient is written out by
hand because time goes into the number of operations where a layer is narrow (docs/performance.md).

Shapes: N tokens, E experts; signals carry a leading 2 for (frozen output, update).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lime.method.routing import DIVISOR_FLOOR, LEAST_SHARE, RoutingPlan
from lime.method.selection import Selected


def shares(how: RoutingPlan) -> tuple[float, float]:
    """Of both normalised signals in the logits over the temperature."""
    return (1 - how.gamma_routing) / how.temperature, how.gamma_routing / how.temperature


def normalise_backward(
    grad_EN: Tensor, values_2EN: Tensor, divisor: Tensor, how: RoutingPlan, considered_N: Tensor | None
) -> Tensor:
    """Gradient of both raw signals, (2, E, N), of normalised ones that have the same gradient; bounded as in
    `lime.method.routing.gradient_divisor`.

    Entries that tie for the largest share its gradient.

    Args:
        values_2EN: the signals over their `divisor`.
        considered_N: tokens that count in the maximum of `tensor`; all when absent.
    """
    of_maximum = 1 if how.norm == "slice" else (1, 2)
    largest = values_2EN.trunc()  # the sign of the largest, 0 elsewhere
    if considered_N is not None:
        largest.mul_(considered_N)
    ties = largest.abs().sum(of_maximum, keepdim=True).clamp_min_(1.0)
    through_divisor = (grad_EN * values_2EN).sum(of_maximum, keepdim=True).div_(ties)
    # As `gradient_divisor`, of the frozen signal beside itself: a divisor at the floor becomes infinite.
    bounded = torch.threshold(divisor, DIVISOR_FLOOR, math.inf)
    bounded = torch.maximum(bounded, divisor[:1] * LEAST_SHARE)
    return torch.addcmul(grad_EN, largest, through_divisor, value=-1).div_(bounded)


def sum_backward(grad_sum_E: Tensor, probabilities_EN: Tensor, kept_N: Tensor | None) -> Tensor:
    """Gradient of the logits, (E, N), of the sum of the probabilities over real tokens."""
    grad_EN = grad_sum_E.unsqueeze(1).expand_as(probabilities_EN)
    grad_EN = torch._softmax_backward_data(grad_EN, probabilities_EN, 0, probabilities_EN.dtype)
    return grad_EN if kept_N is None else grad_EN.mul_(kept_N)


def share_backward(grad_EN: Tensor, anchor_N: Tensor | None) -> Tensor:
    """Gradient of the deciding tokens' own values, (E, N)."""
    return grad_EN if anchor_N is None else torch.zeros_like(grad_EN).index_add_(1, anchor_N, grad_EN)


def select_backward(grad_EN: Tensor, probabilities_EN: Tensor, selected: Selected, how: RoutingPlan) -> Tensor:
    """Gradient of the probabilities from that of soft weights."""
    weights_EN, _, total_1N, index_1N, mask_EN = selected
    assert total_1N is not None
    assert mask_EN is not None
    assert index_1N is not None
    inner_N = torch.linalg.vecdot(grad_EN, weights_EN, dim=0)
    kept_EN = (grad_EN - inner_N).div_(total_1N)
    through_mask_EN = (kept_EN * probabilities_EN).mul_(mask_EN).mul_(1 - mask_EN).div_(how.soft_temperature)
    factor = how.threshold if how.selection == "auto" else 1.0
    kept_EN = kept_EN.mul_(mask_EN).add_(through_mask_EN)
    return kept_EN.scatter_add_(0, index_1N, through_mask_EN.sum(0, keepdim=True).mul_(-factor))
