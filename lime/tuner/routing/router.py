"""The router of one adapted layer: from its signals to routing probabilities and expert weights."""

from __future__ import annotations

import math
import zlib
from dataclasses import replace
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lime.method import routing, windows
from lime.method.deltas.mixture import MixtureDelta
from lime.method.routing import RoutingPlan
from lime.method.selection import select
from lime.tuner.layers.frozen_linear import LinearShape, Shape
from lime.tuner.routing.call import TowerCall
from lime.tuner.settings import CALIBRATED_NORMS, LimeSettings


def _loaded(router: Router, _: Any) -> None:
    """A hook: what was loaded may be that of a calibrated router."""
    router.calibrated = not router.scale.is_meta and bool((router.scale > 0).all())


class Router(nn.Module):
    """Routing of one layer, by one adapter's settings.

    `router: zero` has no parameters (Eq. 3). As buffers, which are saved with the adapter, it holds the indices of
    features that are not consecutive, and of a calibrated norm `shift` and `scale`; `calibrated` is false until they
    are known. `router: learned` holds a matrix (E, d_in).

    Args:
        layer: full name of the adapted layer; random features differ from layer to layer.
    """

    features: Tensor | None
    shift: Tensor
    scale: Tensor

    def __init__(self, base: Shape, settings: LimeSettings, layer: str, dtype: torch.dtype):
        super().__init__()
        self.settings = settings
        self.start = 0
        self.plan = RoutingPlan(
            learned=settings.router == "learned",
            gamma_routing=settings.gamma_routing,
            temperature=settings.temperature,
            norm=settings.routing_norm,
            selection=settings.selection,
            threshold=settings.auto_topk_threshold,
            top_k=settings.top_k,
            max_experts=settings.max_experts,
            soft=settings.soft,
            soft_temperature=settings.soft_temperature,
        )
        E, device = settings.num_experts, base.weight.device
        self.register_buffer("features", None)
        self.calibrated = not settings.calibrates
        if settings.calibrates:
            self.register_buffer("shift", torch.zeros(E, dtype=dtype, device=device))
            self.register_buffer("scale", torch.zeros(E, dtype=dtype, device=device))
            self.register_load_state_dict_post_hook(_loaded)
        if settings.router == "learned":
            self.weight = nn.Parameter(torch.empty(E, base.in_features, dtype=dtype, device=device))
            nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        elif settings.feature_slice == "random":
            # The CPU generator reads 32 bits of its seed.
            seed = zlib.crc32(f"{settings.routing_seed}/{layer}".encode())
            features = routing.random_features(E, base.out_features, seed)
            self.register_buffer("features", features.to(device))
        elif settings.feature_slice == "variance":
            self.register_buffer("features", torch.arange(E, device=device))
        else:
            self.start = routing.feature_start(settings.feature_slice, E, base.out_features)

    def pick(self, signal: Tensor) -> Tensor:
        """The routing features of a signal whose last dimension is the layer's output, (..., E)."""
        return routing.pick(signal, self._picked, self.settings.num_experts)

    @property
    def _picked(self) -> int | Tensor:
        return self.start if self.features is None else self.features

    # -- calibration -------------------------------------------------------------------------------------------

    def calibrate(self, mean: Tensor, variance: Tensor) -> None:
        """Take up what the frozen outputs were like on training rows.

        Args:
            mean, variance: of each output feature over real tokens, (O,).
        """
        if self.features is not None and self.settings.feature_slice == "variance":
            self.features.copy_(variance.topk(self.settings.num_experts).indices)
        mean, variance = (self.pick(one.to(self.shift)) for one in (mean, variance))
        if self.settings.routing_norm == "standard":
            self.shift.copy_(mean)
        else:
            variance = variance + mean.square()
        self.scale.copy_(variance.sqrt().clamp_min(routing.DIVISOR_FLOOR))
        self.calibrated = True

    def refuse(self, layer: str) -> NoReturn:
        """Raise `RuntimeError`: training rows have not been seen yet."""
        raise RuntimeError(
            f"{layer}: feature_slice={self.settings.feature_slice}, routing_norm={self.settings.routing_norm} read "
            "what the frozen outputs are like on training rows; call lime.tuner.calibrate(model, batches) before the "
            "first pass, as train.py does"
        )

    def frozen_signal(self, x: Tensor, base: nn.Linear, projection: Tensor | None) -> tuple[Tensor | None, Tensor]:
        """`(projection x, z[S])` by one product with the E rows of the frozen weight stacked under the projection,
        where there is one.

        The same as picking from `z`, but the backward pass makes no full-width zero tensor for the slice.
        """
        rows = routing.pick(base.weight.t(), self._picked, self.settings.num_experts).t()
        if projection is None:
            u, picked = None, F.linear(x, rows.to(x.dtype))
        else:
            both = F.linear(x, torch.cat([projection, rows.to(projection.dtype)]))
            u, picked = both.split([projection.shape[0], self.settings.num_experts], -1)
        picked = picked.to(routing.routing_dtype(picked.dtype))
        if base.bias is not None:
            picked = picked + self.pick(base.bias)
        return u, picked

    def learned_probabilities(self, x: Tensor) -> Tensor:
        """`softmax(R x / tau)` before windows, (B, T, E)."""
        return self._probabilities(routing.learned_logits(x.to(self.weight.dtype), self.weight))

    def zero_probabilities(
        self,
        z_picked: Tensor,
        zhat_picked: Tensor,
        z: Tensor,
        zhat: Tensor | None,
        call: TowerCall | None,
    ) -> Tensor:
        """Zero-parameter routing probabilities before windows (Eq. 3), (B, T, E).

        Args:
            z_picked, zhat_picked: routing features of the frozen signal and of the update, (B, T, E).
            z: whole frozen signal, (B, T, O); read by `routing_norm: token`.
            zhat: update, (B, T, O); needed by `routing_norm: token`.
        """
        c = self.settings
        considered = None
        if c.routing_norm == "tensor" and c.n_gram > 1 and call is not None:
            considered = windows.is_anchor(call.anchors(z_picked, c.n_gram, c.window_anchor)).unsqueeze(-1)
        norm = "slice" if c.routing_norm in CALIBRATED_NORMS else c.routing_norm
        if norm == c.routing_norm:
            frozen = routing.normalise(z_picked, norm, z, considered)
        else:
            frozen = (z_picked - self.shift) / self.scale
        with torch.no_grad():
            least = routing.divisor(z_picked, norm, z, considered)
        update = routing.normalise(zhat_picked, norm, zhat, considered, least)
        return self._probabilities(routing.blend(frozen, update, c.gamma_routing))

    def _probabilities(self, logits: Tensor) -> Tensor:
        if self.training and self.settings.jitter_noise:
            logits = routing.jitter(logits, self.settings.jitter_noise)
        return routing.probabilities(logits, self.settings.temperature)

    def weights(self, probabilities: Tensor, key: str, call: TowerCall | None) -> Tensor:
        """Windows, selection and recording: expert weights of every token, (B, T, E)."""
        c = self.settings
        if c.n_gram > 1:
            probabilities = (call or TowerCall(key)).share(key, probabilities, c.n_gram, c.window_anchor)
        weights = self.select(probabilities)
        if call is not None:
            call.record(key, probabilities, weights)
        return weights

    def select(self, probabilities: Tensor) -> Tensor:
        """Expert weights from routing probabilities (Eq. 4), (..., E)."""
        c = self.settings
        return select(
            probabilities,
            c.selection,
            threshold=c.auto_topk_threshold,
            top_k=c.top_k,
            max_experts=c.max_experts,
            soft=c.soft,
            soft_temperature=c.soft_temperature,
        )


class MixtureRouter(Router):
    """The learned router of a MoE-PEFT baseline, `E x d_in` without bias: by token, or once for a whole sequence.

    Args:
        As in `Router`.
    """

    def __init__(self, base: Shape, settings: LimeSettings, layer: str, dtype: torch.dtype):
        kind = settings.spec.delta_class()
        assert issubclass(kind, MixtureDelta)
        shape = LinearShape(kind.router_features(base.in_features), base.out_features, base.weight)
        super().__init__(shape, replace(settings, router="learned"), layer, dtype)
        self.kind, self.by_sequence = kind, settings.spec.by_sequence

    def route(self, x: Tensor, logits: Tensor | None, key: str, call: TowerCall | None) -> Tensor:
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
            probabilities = (call or TowerCall(key)).decide(key, x, self._of_means)
        else:
            assert logits is not None
            probabilities = self._of_logits(logits)
            if c.n_gram > 1:
                probabilities = (call or TowerCall(key)).share(key, probabilities, c.n_gram, c.window_anchor)
        weights = self.select(probabilities)
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

    def select(self, probabilities: Tensor) -> Tensor:
        sides = self.kind.sides
        of_side = probabilities if sides == 1 else probabilities.unflatten(-1, (sides, -1)) * sides
        weights = super().select(of_side)
        if sides > 1:
            weights = weights.flatten(-2) / sides
        if self.kind.straight_through:
            weights = weights.detach() + (probabilities - probabilities.detach())
        return weights
