"""A linear layer with LiME: frozen output plus modulated update, `out = z' + zhat * (P + gamma p_s)` (Eq. 1).

`z'` is the frozen output `z`, or its rescaling where the PEFT type has one (DoRA). Without LiME (`enabled: false`) the
same layer has neither modulators nor routing: `out = z' + zhat`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lime.method.deltas.base import Delta, LowRankDelta
from lime.method.fused import path
from lime.method.modulation import add, modulate, modulate_low_rank
from lime.tuner.layers import merging
from lime.tuner.layers.base import LimeLayer
from lime.tuner.layers.decoding import Constants, decoded
from lime.tuner.layers.frozen_linear import frozen_weight, shape_of
from lime.tuner.layers.fused import fused_forward, fusible
from lime.tuner.layers.mixture import adapt_by_mixture
from lime.tuner.layers.mixture_fused import through_mixture
from lime.tuner.routing.call import RoutingState, ScopeCall
from lime.tuner.routing.router import Router
from lime.tuner.settings import LimeSettings


@dataclass(frozen=True)
class _Update:
    """What a PEFT type makes of an input.

    Attributes:
        values: `u(x)`, (B, T, R), of an update `zhat = u @ basis`; `zhat` itself, (B, T, O), where there is no basis.
        basis: (R, O), gain included.
        gain: factor of each output feature, (O,), of types that rescale the frozen output.
        change: `z' - z`, (B, T, O), of those types.
        z_picked: routing features of `z`, (B, T, E), where they came with `u`.
    """

    values: Tensor
    basis: Tensor | None
    gain: Tensor | None
    change: Tensor | None
    z_picked: Tensor | None


class LimeLinear(LimeLayer):
    """A frozen linear layer with any number of named LiME adapters.

    Args:
        base_layer: the frozen layer.
        key: full name of the layer in the model.
        scope: name of the tower it belongs to.
        state: the model's open calls and recorder.
    """

    def __init__(self, base_layer: nn.Module, key: str, scope: str, state: RoutingState):
        super().__init__(key, scope, state)
        self.base_layer: Any = base_layer
        self.training = base_layer.training
        shape = shape_of(base_layer)
        self.in_features, self.out_features = shape.in_features, shape.out_features
        self.decoding: Constants | None = None  # of the generation that is under way

    def update_layer(
        self,
        name: str,
        settings: LimeSettings,
        *,
        init_weights: bool = True,
        inference_mode: bool = False,
        scale_bias: bool = False,
    ) -> None:
        """Add the adapter `name`; its parameters are float32 (float64 over a float64 base).

        Args:
            scale_bias: DoRA's magnitude multiplies the frozen bias too.

        Raises:
            ValueError: more experts than output features, or a slice wider than the layer.
        """
        base = shape_of(self.get_base_layer())
        check_fit(self.key, settings, base)
        dtype = torch.float64 if base.weight.dtype == torch.float64 else torch.float32
        kind = settings.spec.delta_class()
        options = settings.spec.delta_options(settings)
        if kind.reads_weight:
            options["weight"] = self._frozen_weight()
        self.lime_delta[name] = kind(base, dtype=dtype, zero_init=init_weights, **options)
        if scale_bias:
            self.lime_delta[name].scale_bias = True  # type: ignore[assignment]
        self._add_modulators(name, settings, base, dtype)
        self._keep_mode()
        self.set_adapter(self.active_adapters, inference_mode=inference_mode)

    # -- computation -----------------------------------------------------------------------------------------

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self.disable_adapters and self.merged_adapters:
            self.unmerge()
        if self.disable_adapters or self.merged_adapters:
            return self.base_layer(x, *args, **kwargs)
        if not x.numel():
            return self._idle(self.base_layer(x, *args, **kwargs))
        call, tokens = self._seen(x) if self.routes else (None, x)
        out = self._adapted(tokens, call, *args, **kwargs)
        return out if tokens is x else out.view(*x.shape[:-1], -1)

    def _adapted(self, x: Tensor, call: ScopeCall | None, *args: Any, **kwargs: Any) -> Tensor:
        if not args and not kwargs:
            if call is not None and (next_tokens := decoded(self, x, call)) is not None:
                return next_tokens
            if (fused := fusible(self, x, call)) is not None:
                return fused_forward(self, fused, x, call)
            if (mixed := through_mixture(self, x, call)) is not None:
                return mixed
        z = self.base_layer(x, *args, **kwargs)
        out = z
        for name in self.active_adapters:
            if name in self.lime_delta:
                out = self._adapt(name, x, z, out, call)
        return out.to(z.dtype)

    def _adapt(self, name: str, x: Tensor, z: Tensor, out: Tensor, call: ScopeCall | None) -> Tensor:
        """Add the adapter's modulated update to `out`; routed on the frozen output `z`."""
        c = self.lime_settings[name]
        if c.spec.is_mixture:
            return adapt_by_mixture(self, name, x, z, out, call)
        call = call if c.enabled else None
        x = x.to(self.lime_delta[name].compute_dtype)  # type: ignore[arg-type]
        part = self._update(name, x, z)
        weights = self._weights(name, x, z, part, call) if c.enabled else None
        update, change = part.values, part.change
        kept = None if call is None else call.kept(update.dtype)
        if kept is not None:  # padding keeps exactly z
            update = update * kept
            change = None if change is None else change * kept
        out = out.to(torch.promote_types(out.dtype, update.dtype))
        if change is not None:
            out = out + change
        if weights is None:
            return add(out, update, part.basis)
        modulators = self._modulators(name)
        if part.basis is None:
            return modulate(out, update, weights, *modulators)
        return modulate_low_rank(out, update, part.basis, weights, *modulators, normalised=not c.soft)

    def _update(self, name: str, x: Tensor, z: Tensor) -> _Update:
        delta: Delta = self.lime_delta[name]  # type: ignore[assignment]
        gain = delta.gain(self._frozen_weight()) if delta.reads_weight else None
        change = None
        if gain is not None:  # z' - z, from z = W0 x + b0 and z' = gain (W0 x) + b0
            bias = None if delta.scale_bias else self.get_base_layer().bias
            product = z.to(gain.dtype) if bias is None else z.to(gain.dtype) - bias  # type: ignore[operator]
            change = product * (gain - 1)
        if not isinstance(delta, LowRankDelta) or path() == "literal":
            zhat = delta(x)
            return _Update(zhat if gain is None else zhat * gain, None, gain, change, None)
        u, z_picked, base = None, None, self.base_layer
        plain = type(base) is nn.Linear and type(base.weight) is nn.Parameter  # quantised rows cannot be read
        if plain and name in self.lime_router and self.lime_settings[name].router == "zero":
            router: Router = self.lime_router[name]  # type: ignore[assignment]
            u, z_picked = router.frozen_signal(x, base, None if delta.drops else delta.projection())
        basis = delta.basis()
        return _Update(
            delta.rank_space(x) if u is None else u, basis if gain is None else basis * gain, gain, change, z_picked
        )

    def _weights(self, name: str, x: Tensor, z: Tensor, part: _Update, call: ScopeCall | None) -> Tensor:
        """Expert weights of every token, (B, T, E)."""
        c = self.lime_settings[name]
        router: Router = self.lime_router[name]  # type: ignore[assignment]
        if c.router == "learned":
            return router.weights(router.learned_probabilities(x), f"{self.key}:{name}", call)
        zhat = None
        if part.basis is None:
            zhat = part.values
            zhat_picked = router.pick(zhat)
        else:
            if c.routing_norm == "token":
                zhat = part.values @ part.basis
            zhat_picked = part.values @ router.pick(part.basis).to(part.values.dtype)
        z_picked = router.pick(z) if part.z_picked is None else part.z_picked
        zhat_picked = zhat_picked.to(z_picked.dtype)
        if part.gain is not None:  # the frozen signal is z' + zhat
            bias = None if self.lime_delta[name].scale_bias else self.get_base_layer().bias
            product = z_picked if bias is None else z_picked - router.pick(bias)  # type: ignore[arg-type]
            z_picked = z_picked + product * (router.pick(part.gain) - 1) + zhat_picked
            if c.routing_norm == "token":
                assert part.change is not None
                assert zhat is not None
                z = z + part.change + zhat
        probabilities = router.zero_probabilities(z_picked, zhat_picked, z, zhat, call)
        return router.weights(probabilities, f"{self.key}:{name}", call)

    def _frozen_weight(self) -> Tensor:
        """The frozen weight (d_out, d_in) in floating point, where the base layer is quantised too."""
        return frozen_weight(self.get_base_layer())

    # -- merging, of types without LiME ------------------------------------------------------------------------

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        super().merge(safe_merge, adapter_names)
        merging.merge(self, safe_merge, adapter_names)

    def unmerge(self) -> None:
        merging.unmerge(self)

    def get_delta_weight(self, adapter: str) -> Tensor:
        self.check_merge([adapter])
        change_OI = merging.change_of_weight(self, adapter)
        return change_OI.t() if isinstance(self.get_base_layer(), Conv1D) else change_OI


def check_fit(layer: str, settings: LimeSettings, base: nn.Linear) -> None:
    """Raise `ValueError` where a layer is too small for the settings, naming the layer: fewer outputs than experts, or
    fewer columns or rows than the slice of `slicefine`."""
    if settings.enabled and not settings.spec.is_mixture and settings.num_experts > base.out_features:
        raise ValueError(
            f"num_experts: {settings.num_experts} experts need as many routing features, but {layer} has only "
            f"{base.out_features} outputs; use at most {base.out_features} experts or leave that layer out of "
            "target_modules, or name it in exclude_modules"
        )
    if settings.peft == "slicefine":
        widths = {"columns": base.in_features, "rows": base.out_features}
        for what, width in widths.items():
            if settings.orientation in (what, "both") and settings.r > width:
                raise ValueError(
                    f"r: a slice of {settings.r} {what} does not fit {layer}, which has {width}; use r of at most "
                    f"{width} or leave that layer out of target_modules, or name it in exclude_modules"
                )
