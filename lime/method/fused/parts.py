"""What the fused layer is given and what its passes leave, whichever way computes it.

Shapes: N tokens, I inputs, O outputs, R rank, E experts.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from lime.method.routing import RoutingPlan


@dataclass(frozen=True)
class Plan:
    """What a fused layer computes beside its tensors.

    Attributes:
        routing: how it routes.
        first: first routing feature, where they are consecutive.
        dropout: probability of dropping an input feature of the update.
        records: return sums of the routing.
        shows: return the probabilities before windows.
        scale: of the update.
        dtype: dtype of the input and the frozen layer in the wide products, where it is not their own (autocast).
    """

    routing: RoutingPlan = field(default_factory=RoutingPlan)
    first: int = 0
    dropout: float = 0.0
    records: bool = False
    shows: bool = False
    scale: float = 1.0
    dtype: torch.dtype | None = None


class Weights(NamedTuple):
    """Tensors of a fused layer. All but `weight`, `bias` and `features` may carry gradient.

    Attributes:
        weight: frozen W0, (O, I).
        bias: frozen b0, (O,).
        projection: A of `u = A x`, (R, I).
        up: (O, R), of `zhat = u @ basis`, `basis = scale up^T`.
        experts: `p_i`, (E, O).
        shared: `p_s`, (O,), and with it `gamma`, (1,).
        router: learned router, (E, I).
        features: indices of the routing features, (E,), where they are not consecutive.
    """

    weight: Tensor
    bias: Tensor | None
    projection: Tensor
    up: Tensor
    experts: Tensor
    shared: Tensor | None = None
    gamma: Tensor | None = None
    router: Tensor | None = None
    features: Tensor | None = None

    def pick(self, values: Tensor, plan: Plan, dim: int = -1) -> Tensor:
        """The routing features along a dimension of O."""
        if self.features is not None:
            return values.index_select(dim, self.features)
        return values.narrow(dim, plan.first, len(self.experts))


class Tokens(NamedTuple):
    """What is known of the tokens of a call; every field may be absent.

    Attributes:
        noise_EN: factors of the logits.
        kept_N: 1 at real tokens and 0 at padding, in the routing precision.
        anchor_N: the token that decides for each token, as an index into all N.
        considered_N: tokens that count in the maximum of the `tensor` norm, in the routing precision.
    """

    noise_EN: Tensor | None = None
    kept_N: Tensor | None = None
    anchor_N: Tensor | None = None
    considered_N: Tensor | None = None


class Routed(NamedTuple):
    """What the routing of a forward pass leaves, each (E, N).

    Attributes:
        chosen_EN: the hard set, boolean, where a kernel found it.
        own_EN: probabilities before windows; where asked for.
        shared_EN, weights_EN: probabilities after windows, where asked for, and weights after selection, zero at
            padding; kernels leave these only where they are asked for.
    """

    chosen_EN: Tensor | None
    own_EN: Tensor | None
    shared_EN: Tensor | None
    weights_EN: Tensor | None


class Kept(NamedTuple):
    """What a forward pass keeps for its backward pass.

    Attributes:
        u_RN: the input in the update's rank space.
        source_EN: routing features of the frozen output, or the logits of a learned router.
        basis_RO: the basis, in the dtype of `u`.
        weights_EN: weights of a hard choice, zero at padding; or
        chosen_EN: its set, of which they are computed again.
    """

    u_RN: Tensor
    source_EN: Tensor
    basis_RO: Tensor
    weights_EN: Tensor | None = None
    chosen_EN: Tensor | None = None


class Gradients(NamedTuple):
    """What the backward pass finds before the products with the frozen weight and the input.

    Attributes:
        projected: of `u` and of the routing's source, (R + E, N).
        basis_RO, experts_EO, shared_O, gamma: of the tensors of those names.
    """

    projected: Tensor
    basis_RO: Tensor
    experts_EO: Tensor
    shared_O: Tensor | None
    gamma: Tensor | None
