"""The subjects of a comparison: a model adapted by a method, in one of its forms.

A subject is named `method` or `method:form`:

- `frozen`: the model as it is.
- `lora`, `dora`, …: a PEFT type alone (LoRA and DoRA by the `peft` library itself).
- `moe_lora`, `hydra_lora`, …: a MoE baseline, each layer's experts in one product.
- `moe_lora:loop`: the same computed expert after expert, the form usual elsewhere; here for comparison alone.
- `lime_lora`, `lime_dora`, …: LiME over that type, by the path that a run takes.
- `lime_…:triton`, `lime_…:fused`, `lime_…:torch`: by one of the other paths of `lime.method.fused`: the fused function
  with its kernels or without them, or differentiable torch operations.
- `lime_lora:terms`: Eq. 1 multiplied out term by term, with its (tokens, d_out) temporaries; here for comparison alone.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lime
from lime.method import fused
from lime.method.deltas.lora import LoRADelta
from lime.method.deltas.table import METHODS, is_lime, type_options
from lime.method.selection import select
from lime.tuner.routing.router import Router
from lime.tuner.settings import LimeSettings
from lime.tuner.towers import resolve_targets

M = TypeVar("M", bound=nn.Module)

REFERENCE = "lora"
"""The subject that ratios are taken against, beside `frozen`."""


@dataclass(frozen=True)
class Subject:
    """A method in a form; `name` as it was asked for."""

    name: str
    method: str
    form: str

    @classmethod
    def of(cls, name: str) -> Subject:
        """From `method` or `method:form`.

        Raises:
            ValueError: an unknown method or form.
        """
        method, _, form = name.partition(":")
        known = ["frozen", *(name for name, named in METHODS.items() if named.type.name != "any")]
        if method not in known:
            raise ValueError(f"methods: unknown method {method!r}; expected one of {', '.join(known)}")
        paths = [f"{method}:{path}" for path in fused.PATHS] if is_lime(method) else []
        if form and name not in (*MADE_HERE, *paths):
            raise ValueError(f"methods: unknown form {name!r}; expected one of {', '.join([*MADE_HERE, *paths])}")
        return cls(name, method, form)

    @property
    def balances(self) -> bool:
        """Whether balance terms can be computed for it."""
        return self.has_experts and self.name not in MADE_HERE

    @property
    def has_experts(self) -> bool:
        """Whether its cost depends on the number of experts."""
        return self.method != "frozen" and not METHODS[self.method].is_plain

    def running(self) -> AbstractContextManager[None]:
        """The context in which its forward and backward passes run."""
        return fused.use(self.form) if self.form in fused.PATHS else nullcontext()

    def adapt(self, model: nn.Module, settings: LimeSettings) -> nn.Module:
        """Adapt a model in place and put it into training mode; only the adapter then trains.

        Args:
            model: a model of transformers, or any module with linear layers.
            settings: experts, rank and options of LiME. `peft` and `enabled` are set by the method, and options
                that it does not have are left out.
        """
        model.requires_grad_(False)
        own = self.settings(settings)
        if own is None:
            return model.train()
        if self.name in MADE_HERE:
            for target in resolve_targets(model, own):
                parent, _, leaf = target.name.rpartition(".")
                setattr(model.get_submodule(parent), leaf, MADE_HERE[self.name](target.module, own, target.name))
            return model.train()
        adapted: nn.Module = lime.apply(model, own)[0]  # type: ignore[arg-type]
        return adapted.train()

    def settings(self, settings: LimeSettings) -> LimeSettings | None:
        """The method's own settings; None for the frozen model."""
        if self.method == "frozen":
            return None
        kind = METHODS[self.method].type
        if is_lime(self.method):
            own = replace(settings, peft=kind.name, enabled=True)
        elif kind.routing is not None:
            own = replace(LimeSettings(peft=kind.name, num_experts=settings.num_experts), **kind.routing)
        else:
            own = LimeSettings(enabled=False, peft=kind.name)
        for name in ("r", "lora_alpha", "dropout", "scope", "target_modules", "exclude_modules"):
            wanted = name in kind.options or name not in type_options()
            if wanted and not (own.peft == "prompt_tuning" and name.endswith("_modules")):
                own = replace(own, **{name: getattr(settings, name)})
            else:
                own = replace(own, **{name: getattr(LimeSettings(), name)})
        own.check()
        return own


def shared_copy(model: M) -> M:
    """A copy with modules of its own and the same parameters and buffers, to adapt without more memory."""
    memo = {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}
    return copy.deepcopy(model, memo)


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that train."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


class TermsLime(nn.Module):
    """LiME-LoRA term by term: `out = z + zhat * (w P) + gamma (zhat * p_s)`, each factor and product written out as
    (tokens, d_out), differentiated by autograd.

    Masks, windows and balance terms are left out.
    """

    def __init__(self, base: nn.Linear, settings: LimeSettings, name: str):
        super().__init__()
        self.base, self.key = base, name
        width, device = base.out_features, base.weight.device
        self.delta = LoRADelta(base, r=settings.r, lora_alpha=settings.lora_alpha, dropout=settings.dropout)
        self.router = Router(base, settings, name, torch.float32)
        self.experts = nn.Parameter(torch.empty(settings.num_experts, width, device=device).uniform_(0.9, 1.1))
        self.shared = nn.Parameter(torch.empty(width, device=device).normal_(0.0, 0.1))
        self.gamma = nn.Parameter(torch.zeros(1, device=device))

    def forward(self, x: Tensor) -> Tensor:
        z = self.base(x)
        zhat = self.delta(x.float())
        pick = self.router.pick
        probabilities = self.router.zero_probabilities(pick(z).float(), pick(zhat), z, zhat, None)
        w = self.router.weights(probabilities, self.key, None)
        out: Tensor = z + zhat * (w @ self.experts) + self.gamma * (zhat * self.shared)
        return out.to(z.dtype)


class MoELoRALoop(nn.Module):
    """E routed LoRAs and one shared LoRA, one after another: `out = z + s B_s A_s x + sum_i w_i s B_i A_i x`.

    The softmax router is `E x d_in`, without bias; `w` are its weights after selection. The same computation as
    `moe_lora`, which is one product.
    """

    def __init__(self, base: nn.Linear, settings: LimeSettings, name: str):
        super().__init__()
        self.base, self.settings = base, settings
        options: dict[str, Any] = {"r": settings.r, "lora_alpha": settings.lora_alpha, "dropout": settings.dropout}
        self.experts = nn.ModuleList(LoRADelta(base, **options) for _ in range(settings.num_experts))
        self.shared = LoRADelta(base, **options)
        shape = (settings.num_experts, base.in_features)
        self.router = nn.Parameter(torch.randn(shape, device=base.weight.device) * base.in_features**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        out, x = self.base(x), x.to(self.router.dtype)
        w = select(F.linear(x, self.router).softmax(-1), self.settings.selection, top_k=self.settings.top_k)
        dtype, out = out.dtype, out + self.shared(x)
        for index, expert in enumerate(self.experts):
            out = out + w[..., index : index + 1] * expert(x)
        return out.to(dtype)


MADE_HERE: dict[str, Callable[[nn.Linear, LimeSettings, str], nn.Module]] = {
    "lime_lora:terms": TermsLime,
    "moe_lora:loop": MoELoRALoop,
}
"""Forms that exist for comparison alone."""
