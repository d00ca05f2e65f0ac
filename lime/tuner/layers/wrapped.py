"""LiME over an adapter of the `peft` library: its update is what it adds to the frozen layer.

    z = base_layer(x),   zhat = adapter_layer(x) - base_layer(x),   out = z + zhat * (P + gamma p_s)

Any type whose layers wrap a linear layer will do; LoRA (rsLoRA, DoRA and their kind included), VeRA, IA3, OFT, BOFT,
LoHa, LoKr, HRA, MiSS and AdaLoRA are tested. With every modulator at 1 and gamma 0 it computes what the adapter
computes by itself. Against the native types it lacks:

- speed and memory: the update is formed at full width, (tokens, d_out), and types that rewrite the input or the
  weight (OFT, BOFT, HRA, IA3 on feed-forward inputs, …) need a second product with the frozen weight, in float32;
- exactness of a fresh adapter beyond rounding, where the type itself makes its zero update only up to rounding (HRA);
- whatever the type does outside its layers: AdaLoRA stays at its initial rank, without rank allocation and without its
  orthogonality loss; LoRA's layer-wise conversions, hot swapping and mixed batches of adapters are not available;
- trained biases (`bias` other than `none`) and initialisations that change the frozen weights (PiSSA, OLoRA, CorDA,
  LoftQ) are refused, and so are types that keep state outside their layers, except VeRA, which allows one adapter;
- all adapters of a model are of one such type, and none of them native;
- `load_adapter` and `add_adapter` of transformers: load with `lime.load` or `PeftModel.from_pretrained`, which fail on
  any tensor that is missing or left over;
- `torch.compile` of the adapted layers: the frozen layer is watched by hooks, at which the graph breaks.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.func import functional_call

from lime.method.modulation import modulate
from lime.tuner.layers.base import LimeLayer
from lime.tuner.layers.frozen_linear import shape_of
from lime.tuner.layers.parts import Choice
from lime.tuner.routing.state import RoutingState
from lime.tuner.settings import LimeSettings

_watching = threading.RLock()
"""Held while a wrapped layer runs, since it is changed for that time: one adapter active, the frozen layer watched."""


class LimeWrapped(LimeLayer):
    """A tuner layer of the `peft` library whose update is modulated.

    The other arguments are as in `LimeLayer`.

    Args:
        base_layer: the tuner layer; its own base is a linear layer.
    """

    def __init__(self, base_layer: nn.Module, key: str, scope: str, state: RoutingState):
        super().__init__(key, scope, state)
        self.base_layer = base_layer
        self.train(self.get_base_layer().training)
        base = shape_of(self.get_base_layer())
        self.in_features, self.out_features = base.in_features, base.out_features
        self.additive: bool | None = None
        """Whether the type calls the frozen layer once, on the layer's own input; known from the first input on."""

    def update_layer(self, name: str, settings: LimeSettings, *, inference_mode: bool = False) -> None:
        """Add modulators and router of the adapter `name`, which the wrapped layer has already."""
        base = shape_of(self.get_base_layer())
        dtype = torch.float64 if base.weight.dtype == torch.float64 else torch.float32
        self._add_modulators(name, settings, base, dtype)
        self.train(self.training)
        self.set_adapter(self.active_adapters, inference_mode=inference_mode)

    # -- the wrapped layer follows ---------------------------------------------------------------------------

    @property
    def adapter_layer(self) -> Any:
        """The wrapped layer of the `peft` library."""
        return self.base_layer

    def set_adapter(self, adapter_names: str | list[str], inference_mode: bool = False) -> None:
        super().set_adapter(adapter_names, inference_mode=inference_mode)
        self.adapter_layer.set_adapter(adapter_names, inference_mode=inference_mode)

    def delete_adapter(self, adapter_name: str) -> None:
        self.adapter_layer.delete_adapter(adapter_name)
        super().delete_adapter(adapter_name)

    def _freeze_non_trainable_peft_weights(self, adapter_names: str | Sequence[str] | None = None) -> None:
        self.adapter_layer._freeze_non_trainable_peft_weights(adapter_names)

    # -- computation -----------------------------------------------------------------------------------------

    def choose(self) -> Choice:
        """The way that every call takes."""
        return Choice("torch", "its update is that of another adapter, formed at full width")

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        names = [] if self.disable_adapters else [name for name in self.active_adapters if name in self.lime_settings]
        if not names or not x.numel():
            with _watching:
                z = self.get_base_layer()(x, *args, **kwargs)
            return self._idle(z) if names else z
        call, tokens = self.open_call().seen(self.key, x)
        out: Tensor | None = None
        dtype = x.dtype
        for name in names:
            with _watching:
                z, zhat = self._frozen_and_update(name, tokens)
            dtype = z.dtype
            weights = self._route(name, tokens, z, zhat, call)
            real = call.real(zhat.dtype)
            if real is not None:  # padding keeps exactly z
                zhat = zhat * real
            out = z.to(zhat.dtype) if out is None else out
            out = modulate(out, zhat, weights, *self._modulators(name))
        assert out is not None
        return out.to(dtype).view(*x.shape[:-1], -1)

    def _frozen_and_update(self, name: str, x: Tensor) -> tuple[Tensor, Tensor]:
        """`z` in the frozen layer's dtype and `zhat` in float32 (float64 over float64), both (B, T, O)."""
        if self.additive is None:
            self.additive = self._is_additive(name, x)
        if not self.additive:
            return self._by_two_products(name, x)
        z, y = self._with_wide_base(name, x)
        assert z is not None
        return z, y - z.to(y.dtype)

    def _is_additive(self, name: str, x: Tensor) -> bool:
        """Tried on one token, apart from the pass itself: that is to be the same when it is recomputed."""
        with torch.no_grad(), torch.random.fork_rng([x.device] if x.is_cuda else []):
            z, _ = self._with_wide_base(name, x.detach().reshape(-1, x.shape[-1])[:1])
        return z is not None

    def _with_wide_base(self, name: str, x: Tensor) -> tuple[Tensor | None, Tensor]:
        """The wrapped layer's output in float32, and the frozen output on the way to it; nothing for the latter where
        the frozen layer was given something else than `x`."""
        base: nn.Module = self.get_base_layer()
        wide = torch.promote_types(x.dtype, torch.float32)
        x_wide = x.to(wide)
        seen: list[tuple[bool, Tensor]] = []

        def narrow(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            return (x if args[0] is x_wide else args[0].to(x.dtype), *args[1:])

        def widen(_: nn.Module, args: tuple[Any, ...], z: Tensor) -> Tensor:
            seen.append((args[0] is x, z))
            return z.to(wide, copy=True)  # AdaLoRA adds in place

        handles = (base.register_forward_pre_hook(narrow), base.register_forward_hook(widen))
        try:
            with self._only(name):
                layer, widened = self.adapter_layer, {} if x.dtype == wide else self._widened(wide)
                y: Tensor = functional_call(layer, widened, (x_wide,)) if widened else layer(x_wide)
        finally:
            for handle in handles:
                handle.remove()
        on_own_input = len(seen) == 1 and seen[0][0]
        return (seen[0][1] if on_own_input else None), y

    def _by_two_products(self, name: str, x: Tensor) -> tuple[Tensor, Tensor]:
        """The wrapped layer and the frozen one, each by its own product; over a plain linear layer both in float32."""
        base = self.get_base_layer()
        z: Tensor = base(x)
        wide = torch.promote_types(x.dtype, torch.float32)
        autocast = torch.is_autocast_enabled(x.device.type)
        with self._only(name):
            if type(base) is not nn.Linear or (z.dtype == wide and not autocast):
                return z, self.adapter_layer(x).to(wide) - z.to(wide)
            prefix = _path_to_base(self.adapter_layer)
            frozen = {f"{prefix}{key}": p.to(wide) for key, p in base.named_parameters()}
            with torch.autocast(x.device.type, enabled=False):
                y = functional_call(self.adapter_layer, frozen | self._widened(wide), (x.to(wide),))
                return z, y - nn.functional.linear(x.to(wide), frozen[f"{prefix}weight"], frozen.get(f"{prefix}bias"))

    def _widened(self, wide: torch.dtype) -> dict[str, Tensor]:
        """What the wrapped layer keeps beside the frozen one, where a cast model has it in a lower precision: not every
        type casts its input to that."""
        prefix = _path_to_base(self.adapter_layer)
        tensors = (*self.adapter_layer.named_parameters(), *self.adapter_layer.named_buffers())
        return {
            key: one.to(wide)
            for key, one in tensors
            if one.is_floating_point() and one.dtype != wide and not key.startswith(prefix)
        }

    @contextmanager
    def _only(self, name: str) -> Iterator[None]:
        """One adapter alone active in the wrapped layer."""
        layer = self.adapter_layer
        before, layer._active_adapter = layer._active_adapter, [name]
        try:
            yield
        finally:
            layer._active_adapter = before


def _path_to_base(layer: Any) -> str:
    """What the names of the frozen layer's parameters begin with, in the tuner layers around it."""
    path = ""
    while isinstance(layer, BaseTunerLayer):
        path, layer = path + "base_layer.", layer.base_layer  # type: ignore[attr-defined]
    return path
