"""Opening and closing the record of a tower's forward pass, and carrying it through gradient checkpointing.

Hooks are callable objects, not closures, so that models can be copied and pickled.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lime.tuner.context import Generation, RoutingCacheLayer, RoutingState, ScopeCall


class OpenCall:
    """Forward pre-hook of a tower: reads mask, cache and sequence lengths from its arguments."""

    def __init__(self, state: RoutingState, scope: str, flat: bool):
        self.state, self.scope, self.flat = state, scope, flat

    def __call__(self, tower: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        call = ScopeCall(self.scope)
        if not in_backward():  # a whole tower that is recomputed was recorded the first time
            call.recorder = self.state.recorder
        if tower.training and torch.is_grad_enabled():
            secure_checkpointing(tower, self.state)
        if self.flat:
            _read_flat(call, args, kwargs)
        else:
            _read_sequences(call, args, kwargs, self.state.generation)
        self.state.open[self.scope] = call


class CloseCall:
    """Forward hook of a tower: stores the routing decisions of this call in its key-value cache."""

    def __init__(self, state: RoutingState, scope: str):
        self.state, self.scope = state, scope

    def __call__(self, tower: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        call = self.state.open.pop(self.scope, None)
        if call is None:  # the pre-hook raised
            return
        cache = kwargs.get("past_key_values")
        if cache is None:
            cache = getattr(output, "past_key_values", None)
        if cache is not None and call.to_cache:
            _store(cache, call)
        call.close()


def _store(cache: Any, call: ScopeCall) -> None:
    names, values = list(call.to_cache), list(call.to_cache.values())
    flat_BHTE = torch.cat(values, -1).unsqueeze(1)
    layer = call.cache_layer
    if layer is None:
        if call.past:
            return  # the layers themselves refuse a cache that lacks their decisions
        layer = RoutingCacheLayer(call.scope, names, [value.shape[-1] for value in values])
        cache.layers.append(layer)  # after the key-value layers exist, so that none of them moves
    layer.update(flat_BHTE, flat_BHTE[..., :0])


def _read_sequences(
    call: ScopeCall, args: tuple[Any, ...], kwargs: dict[str, Any], generation: Generation | None
) -> None:
    """Language models, and vision towers with a batch dimension: (B, T) tokens and an optional 2-D mask. In a run of
    `generate` the tokens of its first pass decide for their sequences, with a cache and without."""
    tokens = kwargs.get("inputs_embeds")
    if tokens is None:
        tokens = kwargs.get("input_ids")
    if tokens is None and args and isinstance(args[0], Tensor) and not args[0].is_floating_point():
        tokens = args[0]
    if generation is not None and tokens is not None:
        call.deciding = generation.columns.setdefault(call.scope, tokens.shape[1])
    mask, cache = kwargs.get("attention_mask"), kwargs.get("past_key_values")
    if cache is not None:
        if cache.is_compileable:
            call.unknown_padding = "a static key-value cache does not keep them; use a dynamic one"
            return
        call.cached, call.past = True, int(cache.get_seq_length())
        call.cache_layer = next(
            (layer for layer in cache.layers if isinstance(layer, RoutingCacheLayer) and layer.scope == call.scope),
            None,
        )
    if mask is None or tokens is None:
        return
    if not isinstance(mask, Tensor) or mask.dim() != 2:
        shape = f"shape {tuple(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
        call.unknown_padding = f"the attention mask is not 2-D (batch, tokens) but {shape}"
        return
    T = tokens.shape[1]
    if mask.shape[1] != call.past + T:
        raise ValueError(
            f"{call.scope}: the attention mask covers {mask.shape[1]} tokens, "
            f"expected {call.past} cached and {T} new ones"
        )
    call.mask_BS = mask.bool()
    call.mask_BT = call.mask_BS[:, call.past :]


def _read_flat(call: ScopeCall, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Qwen2-VL's vision tower: the patches of all images in one dimension, no mask, `grid_thw` (images,
    3)."""
    patches = args[0] if args else kwargs["hidden_states"]
    grid = args[1] if len(args) > 1 else kwargs["grid_thw"]
    call.lengths = grid.to(patches.device).prod(-1)
    call.total_tokens = patches.shape[0]


def in_backward() -> bool:
    """Whether this is a recomputation inside a backward pass; a graph is compiled in the forward pass."""
    return not torch.compiler.is_compiling() and bool(torch._C._current_graph_task_id() != -1)


# -- gradient checkpointing ----------------------------------------------------------------------------------


def checkpoint_contexts(
    state: RoutingState, other: Callable[[], tuple[Any, Any]] | None = None
) -> tuple[contextlib.AbstractContextManager[Any], contextlib.AbstractContextManager[Any]]:
    """`context_fn` of `torch.utils.checkpoint`: recompute with the calls that were open in the first pass."""
    first, again = other() if other is not None else (contextlib.nullcontext(), contextlib.nullcontext())
    return first, _Both(again, state.restored(dict(state.open)))


class _Both(contextlib.ExitStack):
    def __init__(self, *contexts: contextlib.AbstractContextManager[Any]):
        super().__init__()
        self.contexts = contexts

    def __enter__(self) -> _Both:
        super().__enter__()
        for context in self.contexts:
            self.enter_context(context)
        return self


def secure_checkpointing(tower: nn.Module, state: RoutingState) -> None:
    """Give every checkpointed block of a tower the `context_fn` that LiME needs, however checkpointing was
    switched on.

    Raises:
        ValueError: reentrant checkpointing, which loses the balance losses' gradient without a word.
    """
    for module in tower.modules():
        if not getattr(module, "gradient_checkpointing", False):
            continue
        function = getattr(module, "_gradient_checkpointing_func", None)
        options = dict(getattr(function, "keywords", None) or {})
        if function is checkpoint or options.get("use_reentrant") is not False:
            raise ValueError(
                "LiME needs non-reentrant gradient checkpointing; with the reentrant kind gradients are wrong "
                "without a word. Use model.gradient_checkpointing_enable("
                'gradient_checkpointing_kwargs={"use_reentrant": False})'
            )
        context = options.get("context_fn")
        if isinstance(context, functools.partial) and context.func is checkpoint_contexts:
            if context.args[0] is state:
                continue
            context = context.keywords["other"]  # LiME's own, of the model that this one was copied from
        secured = functools.partial(checkpoint_contexts, state, other=context)
        assert isinstance(function, functools.partial)
        module._gradient_checkpointing_func = functools.partial(  # type: ignore[assignment]
            function.func, *function.args, **{**options, "context_fn": secured}
        )
