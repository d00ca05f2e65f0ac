"""When an adapted layer takes the fused function (`lime.method.fused`), and what it hands to it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lime.method.deltas.base import LowRankDelta
from lime.method.fused import BY_FUNCTION, path
from lime.method.fused.function import Fused, Plan, Tokens, Weights
from lime.method.routing import jitter_factors, routing_dtype
from lime.tuner.routing.call import ScopeCall
from lime.tuner.routing.router import Router

if TYPE_CHECKING:
    from lime.tuner.layers.linear import LimeLinear


def fusible(layer: LimeLinear, x: Tensor, call: ScopeCall | None = None) -> str | None:
    """The one active adapter of a layer, where the fused function applies to it and to the input.

    It does not, and differentiable torch is left to act, where
    - the frozen layer is more than its product: quantised, sharded, reparametrised, hooked or trained itself;
    - several adapters act at once, or one without LiME;
    - the type rescales the frozen output (DoRA), or the norm needs whole rows (`routing_norm: token`);
    - windows reach into a key-value cache;
    - the layer is compiled or traced, or transformed by `torch.func`.
    """
    if path() not in BY_FUNCTION or is_transformed():
        return None
    names = [name for name in layer.active_adapters if name in layer.lime_delta]
    if len(names) != 1:
        return None
    (name,) = names
    if name not in layer.lime_router or not isinstance(layer.lime_router[name], Router):
        return None
    settings, delta = layer.lime_settings[name], layer.lime_delta[name]
    if not isinstance(delta, LowRankDelta) or delta.reads_weight:
        return None
    if settings.routing_norm == "token" and settings.router == "zero":
        return None
    if not is_plain(layer.base_layer) or _wide_dtype(x, layer.base_layer.weight) is None:
        return None
    if settings.n_gram > 1 and call is not None and call.past:
        return None
    return name


def is_transformed() -> bool:
    """Whether a graph is made of the operations, or `torch.func` differentiates them."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing() or torch._C._are_functorch_transforms_active()


def is_plain(base: nn.Module) -> bool:
    """Whether a layer is exactly `W0 x + b0` with frozen `W0` and `b0`, and calling it does nothing else."""
    if type(base) is not nn.Linear or type(base.weight) is not nn.Parameter or "forward" in base.__dict__:
        return False
    if base._forward_hooks or base._forward_pre_hooks or base._backward_hooks or base._backward_pre_hooks:
        return False
    if torch.nn.modules.module._has_any_global_hook():
        return False
    return not base.weight.requires_grad and (base.bias is None or not base.bias.requires_grad)


def _wide_dtype(x: Tensor, weight: Tensor) -> torch.dtype | None:
    """Dtype in which the frozen product runs; nothing where its operands do not agree."""
    device = x.device.type
    if torch.is_autocast_enabled(device) and torch.float64 not in (x.dtype, weight.dtype):
        return torch.get_autocast_dtype(device)
    return x.dtype if x.dtype == weight.dtype and x.is_floating_point() else None


def fused_forward(layer: LimeLinear, name: str, x: Tensor, call: ScopeCall | None) -> Tensor:
    """Output of the layer with the adapter `name`, where `fusible` says so."""
    settings, base = layer.lime_settings[name], layer.base_layer
    router: Router = layer.lime_router[name]  # type: ignore[assignment]
    delta: Any = layer.lime_delta[name]
    key = f"{layer.key}:{name}"
    dtype = _wide_dtype(x, base.weight)
    assert dtype is not None
    wide = routing_dtype(dtype)
    count = x.shape[:-1].numel()

    kept = None if call is None else call.kept(wide)
    anchor = considered = None
    if settings.n_gram > 1:
        anchor, is_anchor = (call or ScopeCall(layer.key)).anchor_index(key, x, settings.n_gram, settings.window_anchor)
        if settings.routing_norm == "tensor" and call is not None:
            considered = is_anchor.to(wide)
    noise = None
    if layer.training and settings.jitter_noise:
        noise = jitter_factors((settings.num_experts, count), settings.jitter_noise, wide, x.device)

    records = call is not None and call.recorder is not None
    shows = call is not None and call.wants_decisions(settings.n_gram, settings.window_anchor)
    features = router.features if settings.router == "zero" and settings.feature_slice == "random" else None
    plan = Plan(
        router.plan,
        router.start,
        delta.dropout if delta.drops else 0.0,
        records,
        shows,
        None if x.dtype == base.weight.dtype == dtype else dtype,
    )
    _, shared, gamma = (*layer._modulators(name), None, None)[:3]
    learned = router.weight if settings.router == "learned" else None
    with torch.autocast(x.device.type, enabled=False):
        out, sum_E, statistics, own_EN = Fused.apply(
            x,
            *Weights(
                base.weight,
                base.bias,
                delta.projection(),
                delta.basis(),
                layer.lime_experts[name],
                shared,
                gamma,
                learned,
                features,
            ),
            *Tokens(noise, None if kept is None else kept.view(-1), anchor, considered),
            plan,
        )
    if records:
        assert call is not None
        call.record_sums(key, sum_E, statistics, count)
    if shows:
        assert call is not None
        call.to_cache[key] = own_EN.t().reshape(*x.shape[:-1], settings.num_experts)
    return out
