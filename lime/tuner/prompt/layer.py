"""Prompt tuning of a language model: the layer that holds the virtual tokens, and where it is put.

Shapes: B sequences, T tokens, V virtual tokens, H embedding width.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lime.method.deltas.prompt import PromptDelta
from lime.method.modulation import modulate
from lime.tuner.layers.base import LimeLayer
from lime.tuner.layers.frozen_linear import LinearShape
from lime.tuner.routing.call import TowerCall
from lime.tuner.routing.hooks import in_backward
from lime.tuner.routing.state import RoutingState
from lime.tuner.settings import LimeSettings
from lime.tuner.towers import Tower, find_towers

CHILD = "virtual_tokens"
"""Name of the layer in its language model."""


@dataclass
class Insertion:
    """What one forward pass of the language model has been given: filled in when it is entered, read when it returns.

    Attributes:
        names: adapters whose virtual tokens stand before the sequence.
        tokens: number V of their virtual tokens.
        inserted: they were inserted in this call; else they are in the key-value cache already.
        cache: the key-value cache that was passed in.
    """

    names: tuple[str, ...] = ()
    tokens: int = 0
    inserted: bool = False
    cache: Any = None


class _Running(threading.local):
    """State of a running call, of each thread its own; no copy of the model takes it over."""

    def __init__(self) -> None:
        self.insertion = Insertion()

    def __deepcopy__(self, memo: dict[int, object]) -> _Running:
        return _Running()

    def __reduce__(self) -> tuple[type[_Running], tuple[()]]:
        return _Running, ()


class PromptLayer(LimeLayer):
    """Virtual tokens of any number of named adapters, `prompt = e0 + d * (P + gamma p_s)`, (B, V, H).

    Routed on the frozen signal `e0 + mean input embedding over unmasked tokens` and on `d`: the routing sees the whole
    input of the pass that makes the prompt, so with LiME an output depends on later tokens of that pass through the
    mean; without LiME the prompt is constant, and causal. `generate` takes the mean over its prompt alone, in every
    step, with a cache and without.

    The other arguments are as in `LimeLayer`.

    Args:
        width: H.
        device: of the embeddings.
    """

    weight = bias = None  # type: ignore[assignment]  # there is no base layer, which peft would look for without end

    def __init__(self, key: str, scope: str, state: RoutingState, width: int):
        super().__init__(key, scope, state)
        self.width = width
        self.running = _Running()

    def update_layer(
        self,
        name: str,
        settings: LimeSettings,
        embedding: Tensor,
        *,
        init_weights: bool = True,
        inference_mode: bool = False,
    ) -> None:
        """Add the adapter `name`; its parameters are float32 (float64 over float64 embeddings).

        Args:
            embedding: the vocabulary's embeddings, (N, H).
        """
        dtype = torch.float64 if embedding.dtype == torch.float64 else torch.float32
        self.lime_delta[name] = PromptDelta(
            embedding,
            num_virtual_tokens=settings.num_virtual_tokens,
            init=settings.prompt_init,
            dtype=dtype,
            zero_init=init_weights,
        )
        self._add_modulators(name, settings, LinearShape(self.width, self.width, embedding), dtype)
        self._keep_mode()
        self.set_adapter(self.active_adapters, inference_mode=inference_mode)

    def _base_device(self) -> torch.device:
        return next(iter(self.lime_delta.values())).initial.device  # type: ignore[return-value]

    @property
    def in_features(self) -> int:
        """Number of virtual tokens of all adapters."""
        return sum(settings.num_virtual_tokens for settings in self.lime_settings.values())

    @property
    def out_features(self) -> int:
        return self.width

    def check_merge(self, adapter_names: list[str] | None) -> None:
        super().check_merge(adapter_names)
        if any(name in self.lime_delta for name in adapter_names or self.active_adapters):
            raise NotImplementedError("a prompt cannot be merged: virtual tokens before the input are no weights")

    def acting(self) -> tuple[str, ...]:
        """Adapters that take effect just now, in order."""
        if self.disable_adapters:
            return ()
        return tuple(name for name in self.active_adapters if name in self.lime_delta)

    def forward(self, embeddings: Tensor, mask: Tensor | None) -> Tensor:
        """Virtual tokens of the acting adapters, one after the other; (B, V, H), at least float32.

        Args:
            embeddings: input embeddings, (B, T, H), to take the mean of.
            mask: true at real tokens, (B, T); absent when all are.
        """
        return torch.cat([self._prompt(name, embeddings, mask) for name in self.acting()], 1)

    def _prompt(self, name: str, embeddings: Tensor, mask: Tensor | None) -> Tensor:
        delta: PromptDelta = self.lime_delta[name]  # type: ignore[assignment]
        batch = embeddings.shape[0]
        if not self.lime_settings[name].enabled:
            return (delta.initial + delta.offset).expand(batch, -1, -1)
        z = delta.frozen_signal(embeddings, mask)
        zhat = delta.offset.expand_as(z)
        call = TowerCall(self.key)  # every virtual token is real, whatever the sequence's padding
        if not in_backward():  # a recomputed pass was recorded the first time
            call.recorder = self.routing_state.recorder
        weights = self._route(name, z, z, zhat, call)
        return modulate(delta.initial.expand_as(z), zhat, weights, *self._modulators(name))


def prompt_place(model: nn.Module, settings: LimeSettings) -> tuple[Tower, str]:
    """The language model that takes the virtual tokens, and the full name of its input embeddings.

    Raises:
        ValueError: no language model, several of them, more experts than its width, or a scope or targets, which
            prompt tuning does not have.
    """
    towers = [tower for tower in find_towers(model) if tower.kind == "language_model"]
    if len(towers) != 1:
        raise ValueError(f"peft: prompt_tuning needs one language model, {type(model).__name__} has {len(towers)}")
    (tower,) = towers
    language: Any = model.get_submodule(tower.name)
    embedding = language.get_input_embeddings() if hasattr(language, "get_input_embeddings") else None
    if not isinstance(embedding, nn.Module) or not isinstance(getattr(embedding, "weight", None), Tensor):
        raise ValueError(f"peft: prompt_tuning needs input embeddings, which {tower.name or 'the model'} does not have")
    width = embedding.weight.shape[1]  # type: ignore[index]
    if settings.enabled and settings.num_experts > width:
        raise ValueError(
            f"num_experts: {settings.num_experts} experts need as many routing features, but the embeddings of "
            f"{tower.name or 'the model'} have only {width}; use at most {width} experts"
        )
    inside = next(name for name, module in language.named_modules() if module is embedding)
    return tower, f"{tower.name}.{inside}" if tower.name else inside


def prompt_layer(language: nn.Module) -> PromptLayer | None:
    """The prompt layer of a language model, where it has one."""
    layer = getattr(language, CHILD, None)
    return layer if isinstance(layer, PromptLayer) else None
