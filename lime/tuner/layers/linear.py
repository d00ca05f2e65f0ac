"""A linear layer with LiME: frozen output plus modulated update, `out = z' + zhat * (P + gamma p_s)` (Eq. 1).

`z'` is the frozen output `z`, or its rescaling where the PEFT type has one (DoRA). Without LiME (`enabled: false`) the
same layer has neither modulators nor routing: `out = z' + zhat`.

`LimeLinear.choose` decides which of three ways a call takes. Between this file and the result the input passes

- `torch`, the definition, differentiable as often as one likes: `routing/call.py` (which tokens these are),
  `routing/router.py` with `method/routing.py` (Eq. 3 and 4), `method/modulation.py` (Eq. 1);
- `fused`, the same as one function with a backward pass of its own, for memory: `routing/call.py`, `layers/fused.py`
  (what the function is given), `method/fused/`;
- `decoding`, the same with few operations, for the tokens of a generation: `routing/call.py`, `layers/decoding.py`.

The update's own tensors come from `lime/method/deltas`. A mixture's way, fused or not, is `layers/mixture.py`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from peft.tuners.tuners_utils import check_adapters_to_merge
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lime.method import fused
from lime.method.deltas.base import LowRankDelta
from lime.method.deltas.mixture import MixtureDelta
from lime.method.modulation import add, modulate, modulate_low_rank
from lime.tuner.layers import merging
from lime.tuner.layers.base import LimeLayer
from lime.tuner.layers.decoding import MOST_TOKENS, Constants, constants_of, decode, is_decodable
from lime.tuner.layers.frozen_linear import check_fit, frozen_weight, shape_of
from lime.tuner.layers.fused import fused_forward
from lime.tuner.layers.mixture import add_mixture, fused_mixture
from lime.tuner.layers.parts import Adapter, Choice
from lime.tuner.routing.call import TowerCall
from lime.tuner.routing.state import RoutingState
from lime.tuner.settings import CALIBRATED_NORMS, LimeSettings


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
        base = shape_of(self.base_layer)
        check_fit(self.key, settings, base)
        dtype = torch.float64 if base.weight.dtype == torch.float64 else torch.float32
        kind = settings.spec.delta_class()
        options = settings.spec.delta_options(settings)
        if kind.reads_weight:
            options["weight"] = frozen_weight(self.base_layer)
        self.lime_delta[name] = kind(base, dtype=dtype, zero_init=init_weights, **options)
        if scale_bias:
            self.lime_delta[name].scale_bias = True  # type: ignore[assignment]
        self._add_modulators(name, settings, base, dtype)
        self._keep_mode()
        self.set_adapter(self.active_adapters, inference_mode=inference_mode)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self.disable_adapters and self.merged_adapters:
            self.unmerge()
        if self.disable_adapters or self.merged_adapters:
            return self.base_layer(x, *args, **kwargs)
        if not x.numel():
            return self._idle(self.base_layer(x, *args, **kwargs))
        call, tokens = None, x
        if len(self.lime_router):  # an adapter routes
            call, tokens = self.open_call().seen(self.key, x)
        way = Choice("torch", "the frozen layer is given further arguments")
        if not args and not kwargs:
            way = self.choose(tokens, call)
        if way.way == "decoding":
            assert self.decoding is not None
            assert call is not None
            out = decode(self.decoding, tokens, call)
        elif way.way == "fused":
            part = self.part(way.name)
            assert way.dtype is not None
            out = (fused_forward if part.modulators else fused_mixture)(part, tokens, way.dtype, call)
        else:
            out = z = self.base_layer(tokens, *args, **kwargs)
            for name in self.active_adapters:
                if name in self.lime_delta:
                    out = self.add_update(name, tokens, z, out, call)
            out = out.to(z.dtype)
        return out if tokens is x else out.view(*x.shape[:-1], -1)

    def part(self, name: str) -> Adapter:
        """What the ways through this layer are given of the adapter `name`."""
        settings = self.lime_settings[name]
        delta: Any = self.lime_delta[name]
        router: Any = self.lime_router[name] if settings.enabled else None
        if router is not None and not router.calibrated:
            router.refuse(self.key)
        modulators = self._modulators(name) if name in self.lime_experts else ()
        ranks = self.lime_ranks[name] if settings.enabled and settings.rank_modulation else None
        return Adapter(f"{self.key}:{name}", settings, self.base_layer, delta, router, modulators, self.training, ranks)

    def add_update(self, name: str, x: Tensor, z: Tensor, out: Tensor, call: TowerCall | None) -> Tensor:
        """By the definition: add the modulated update of the adapter `name` to `out`, (B, T, O).

        Args:
            x: the layer's input, (B, T, I).
            z: its frozen output, (B, T, O), by which it is routed.
            call: of its tokens.
        """
        add_one = add_mixture if isinstance(self.lime_delta[name], MixtureDelta) else _add_modulated
        return add_one(self.part(name), x, z, out, call)

    # -- which way ---------------------------------------------------------------------------------------------

    def choose(self, x: Tensor | None = None, call: TowerCall | None = None) -> Choice:
        """The way that a call takes: `decoding` within a generation, `fused` where that function applies, else `torch`.

        Args:
            x: the layer's input, (B, T, I); without it, what holds for any input of the frozen weight's dtype.
            call: of its tokens.
        """
        stands_still = not torch.is_grad_enabled() and not self.training
        if x is not None and call is not None and stands_still and self._can_decode(x, call):
            return Choice("decoding", "one adapter in a generation, with constants of its own")
        return self._fused_or_torch(x, call)

    def _fused_or_torch(self, x: Tensor | None, call: TowerCall | None) -> Choice:
        names = [name for name in self.active_adapters if name in self.lime_delta]
        if len(names) != 1:
            return Choice("torch", f"{len(names)} adapters act on a layer")
        (name,) = names
        base, dtype = self.base_layer, None
        reason = _of_process() or self._of_adapter(name, x, call) or _of_base(base)
        if not reason and x is not None:
            dtype = _wide_dtype(x, base.weight)
            reason = "" if dtype is not None else "input and frozen weight are of different dtypes"
        return Choice("torch", reason) if reason else Choice("fused", "", name, dtype)

    def _of_adapter(self, name: str, x: Tensor | None, call: TowerCall | None) -> str:
        """What about an adapter and its windows the fused function does not compute; empty where it does."""
        settings = self.lime_settings[name]
        delta: Any = self.lime_delta[name]
        if not settings.enabled:
            return "the PEFT type is alone, without LiME"
        if isinstance(delta, MixtureDelta):
            drops = delta.dropout > 0 and (x is None or delta.training)
            return "dropout acts on a mixture" if drops else ""
        if not isinstance(delta, LowRankDelta):
            return f"the update of {settings.peft} is not of low rank"
        if delta.reads_weight:
            return f"{settings.peft} rescales the frozen output"
        if settings.rank_modulation:
            return "experts modulate the rank too"
        if settings.router == "zero" and settings.routing_norm == "token":
            return "routing_norm: token reads whole outputs"
        if settings.router == "zero" and settings.routing_norm in CALIBRATED_NORMS:
            return f"routing_norm: {settings.routing_norm} has a scale of each feature"
        if settings.n_gram > 1 and call is not None and call.past:
            return "windows reach into a key-value cache"
        return ""

    def _can_decode(self, x: Tensor, call: TowerCall) -> bool:
        """Whether the call is one of a generation: a cache was passed in, nothing is recorded, and the one adapter has
        constants (`lime.tuner.layers.decoding`). A call with an empty cache forgets those of the generation before."""
        many = x.numel() > MOST_TOKENS * x.shape[-1]
        if not call.past:
            self.decoding = None
            if not call.cached or many:
                return False
        constants = self.decoding
        if constants is None or not constants.hold(self._active_adapter):
            way, _, name, _ = self._fused_or_torch(x, None)
            constants = None
            if way == "fused" and is_decodable(self.lime_settings[name]) and not getattr(self, "_is_replica", False):
                constants = constants_of(self.part(name), self._active_adapter)
            self.decoding = constants  # not of a replica, which lives for one pass
        if constants is None or many or call.recorder is not None or fused.path() != "auto":
            return False
        return not torch.is_autocast_enabled(x.device.type)

    # -- merging, of types without LiME ------------------------------------------------------------------------

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        super().merge(safe_merge, adapter_names)
        names = [name for name in check_adapters_to_merge(self, adapter_names) if name in self.lime_delta]
        merging.merge(self, {name: self.part(name) for name in names}, safe_merge)

    def unmerge(self) -> None:
        merging.unmerge(self)

    def get_delta_weight(self, adapter: str) -> Tensor:
        self.check_merge([adapter])
        change_OI = merging.change_of_weight(self.part(adapter))
        return change_OI.t() if isinstance(self.base_layer, Conv1D) else change_OI


def _of_process() -> str:
    """Why no layer takes the fused function just now; empty where layers may."""
    if fused.path() not in fused.BY_FUNCTION:
        return f"the path {fused.path()!r} was asked for"
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or torch._C._are_functorch_transforms_active():
        return "operations are compiled, traced or transformed"
    return ""


def _of_base(base: nn.Module) -> str:
    """Why a layer is not exactly `W0 x + b0` with frozen `W0` and `b0`, whose call does nothing else; empty where it
    is."""
    if type(base) is not nn.Linear or type(base.weight) is not nn.Parameter or "forward" in base.__dict__:
        return "the frozen layer is quantised, or no plain nn.Linear"
    if base._forward_hooks or base._forward_pre_hooks or base._backward_hooks or base._backward_pre_hooks:
        return "the frozen layer has hooks"
    if torch.nn.modules.module._has_any_global_hook():
        return "all modules have hooks"
    if base.weight.requires_grad or (base.bias is not None and base.bias.requires_grad):
        return "the base layer is trained itself"
    return ""


def _wide_dtype(x: Tensor, weight: Tensor) -> torch.dtype | None:
    """Dtype in which the frozen product runs; nothing where its operands do not agree."""
    device = x.device.type
    if torch.is_autocast_enabled(device) and torch.float64 not in (x.dtype, weight.dtype):
        return torch.get_autocast_dtype(device)
    return x.dtype if x.dtype == weight.dtype and x.is_floating_point() else None


# -- the definition ----------------------------------------------------------------------------------------------


class _Update(NamedTuple):
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


def _add_modulated(part: Adapter, x: Tensor, z: Tensor, out: Tensor, call: TowerCall | None) -> Tensor:
    settings = part.settings
    call = call if settings.enabled else None
    update = _update(part, x, z)
    weights = _expert_weights(part, x, z, update, call) if settings.enabled else None
    values, change = update.values, update.change
    real = None if call is None else call.real(values.dtype)
    if real is not None:  # padding keeps exactly z
        values = values * real
        change = None if change is None else change * real
    out = out.to(torch.promote_types(out.dtype, values.dtype))
    if change is not None:
        out = out + change
    if weights is None:
        return add(out, values, update.basis)
    if update.basis is None:
        return modulate(out, values, weights, *part.modulators)
    return modulate_low_rank(
        out, values, update.basis, weights, *part.modulators, normalised=not settings.soft, ranks_ER=part.ranks
    )


def _update(part: Adapter, x: Tensor, z: Tensor) -> _Update:
    delta, base = part.delta, part.base
    gain = change = None
    if delta.reads_weight:  # z' - z, from z = W0 x + b0 and z' = gain (W0 x) + b0
        gain = delta.gain(frozen_weight(base))
        bias = None if delta.scale_bias else base.bias
        product = z.to(gain.dtype) if bias is None else z.to(gain.dtype) - bias
        change = product * (gain - 1)
    if not isinstance(delta, LowRankDelta):
        zhat = delta(x.to(delta.compute_dtype))
        return _Update(zhat if gain is None else zhat * gain, None, gain, change, None)
    basis = delta.basis()
    x, u, z_picked = x.to(basis.dtype), None, None
    plain = type(base) is nn.Linear and type(base.weight) is nn.Parameter  # quantised rows cannot be read
    if plain and part.router is not None and part.settings.router == "zero":
        u, z_picked = part.router.frozen_signal(x, base, None if part.delta.drops else delta.projection())
    u = delta.rank_space(x) if u is None else u
    return _Update(u, basis if gain is None else basis * gain, gain, change, z_picked)


def _expert_weights(part: Adapter, x: Tensor, z: Tensor, update: _Update, call: TowerCall | None) -> Tensor:
    """Expert weights of every token, (B, T, E)."""
    router, by_token = part.router, part.settings.routing_norm == "token"
    if part.settings.router == "learned":
        return router.weights(router.learned_probabilities(x), part.key, call)
    zhat = None
    if update.basis is None:
        zhat = update.values
        zhat_picked = router.pick(zhat)
    else:
        if by_token:
            zhat = update.values @ update.basis
        zhat_picked = update.values @ router.pick(update.basis).to(update.values.dtype)
    z_picked = router.pick(z) if update.z_picked is None else update.z_picked
    zhat_picked = zhat_picked.to(z_picked.dtype)
    if update.gain is not None:  # the frozen signal is z' + zhat
        bias = None if part.delta.scale_bias else part.base.bias
        product = z_picked if bias is None else z_picked - router.pick(bias)
        z_picked = z_picked + product * (router.pick(update.gain) - 1) + zhat_picked
        if by_token:
            assert update.change is not None
            assert zhat is not None
            z = z + update.change + zhat
    probabilities = router.zero_probabilities(z_picked, zhat_picked, z, zhat, call)
    return router.weights(probabilities, part.key, call)
