"""The backward pass of routing and selection (Eq. 3 and 4), in closed form.

The forward pass is that of `lime.method.routing` and `selection`, experts before tokens. Its gradient is written out by
hand because time goes into the number of operations where a layer is narrow: with autograd over the recomputed
(E, N) part a layer takes 1.5% longer at best and 13% longer at worst (docs/performance.md).

Shapes: N tokens, E experts; signals carry a leading 2 for (frozen output, update).
"""

from __future__ import annotations

import torch
from torch import Tensor

from lime.method.routing import RoutingPlan, gradient_divisor
from lime.method.selection import Selected


def blend(values_2EN: Tensor, how: RoutingPlan) -> Tensor:
    """Logits over the temperature, `((1 - g) norm(z)[S] + g norm(zhat)[S]) / tau`, (E, N); `lime.method.routing.blend`
    and the division in two operations, not in three."""
    frozen_EN, update_EN = values_2EN
    frozen, update = _shares(how)
    return torch.mul(frozen_EN, frozen).add_(update_EN, alpha=update)


def blend_backward(grad_EN: Tensor, how: RoutingPlan) -> Tensor:
    """Gradient of the normalised signals, (2, E, N)."""
    grad_2EN = grad_EN.new_empty(2, *grad_EN.shape)
    for grad, share in zip(grad_2EN, _shares(how), strict=True):
        torch.mul(grad_EN, share, out=grad)
    return grad_2EN


def _shares(how: RoutingPlan) -> tuple[float, float]:
    return (1 - how.gamma_routing) / how.temperature, how.gamma_routing / how.temperature


def normalise_backward(
    grad_2EN: Tensor, values_2EN: Tensor, divisor: Tensor, how: RoutingPlan, considered_N: Tensor | None
) -> Tensor:
    """Gradient of the raw signals, bounded as in `lime.method.routing.gradient_divisor`; in place of `grad_2EN`.

    Entries that tie for the largest share its gradient.

    Args:
        values_2EN: the signals over their `divisor`.
        considered_N: tokens that count in the maximum of `tensor`; all when absent.
    """
    bounded = gradient_divisor(divisor, divisor[:1])  # of the frozen signal: its own
    largest = values_2EN.abs().ge_(1.0)
    if how.norm == "slice":
        through_divisor = torch.linalg.vecdot(grad_2EN, values_2EN, dim=1).unsqueeze(1)
        ties = largest.sum(1, keepdim=True)
    else:
        if considered_N is not None:
            largest = largest.mul_(considered_N)
        through_divisor = (grad_2EN * values_2EN).sum((1, 2), keepdim=True)
        ties = largest.sum((1, 2), keepdim=True)
    through_divisor = through_divisor.div_(ties.clamp_min_(1.0))
    return grad_2EN.addcmul_(largest.mul_(values_2EN), through_divisor, value=-1).div_(bounded)


def share_backward(grad_EN: Tensor, anchor_N: Tensor | None) -> Tensor:
    """Gradient of the deciding tokens' own values, (E, N)."""
    return grad_EN if anchor_N is None else torch.zeros_like(grad_EN).index_add_(1, anchor_N, grad_EN)


def select_backward(grad_EN: Tensor, probabilities_EN: Tensor, selected: Selected, how: RoutingPlan) -> Tensor:
    """Gradient of the probabilities from that of the weights; a hard set counts as a constant."""
    weights_EN, chosen_EN, total_1N, index_1N, mask_EN = selected
    if total_1N is None:
        return grad_EN
    inner_N = torch.linalg.vecdot(grad_EN, weights_EN, dim=0)
    kept_EN = (grad_EN - inner_N).div_(total_1N)
    if chosen_EN is not None:
        return kept_EN.mul_(chosen_EN)
    assert mask_EN is not None
    assert index_1N is not None
    through_mask_EN = (kept_EN * probabilities_EN).mul_(mask_EN).mul_(1 - mask_EN).div_(how.soft_temperature)
    factor = how.threshold if how.selection == "auto" else 1.0
    kept_EN = kept_EN.mul_(mask_EN).add_(through_mask_EN)
    return kept_EN.scatter_add_(0, index_1N, through_mask_EN.sum(0, keepdim=True).mul_(-factor))
