"""Opening and closing the record of a tower's forward pass, and carrying it through gradient checkpointing.

Hooks are callable objects, not closures, so that models can be copied and pickled.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.cache_utils import Cache

from lime.tuner.routing.call import RoutingCacheLayer, TowerCall
from lime.tuner.routing.reading import key_value_cache, read_flat, read_sequences
from lime.tuner.routing.state import RoutingState


def check_arguments(arguments: dict[str, Any]) -> None:
    """Raise NotImplementedError for an argument of peft that LiME would drop."""
    for argument in ("adapter_names", "alora_offsets"):
        if arguments.get(argument) is not None:
            raise NotImplementedError(
                f"{argument}: the rows of a batch under LiME all go through the active adapter; pass the rows of "
                "each adapter by themselves, after model.set_adapter(name)"
            )


class OpenCall:
    """Forward pre-hook of a tower: reads mask, cache and sequence lengths from its arguments."""

    def __init__(self, state: RoutingState, scope: str, flat: bool):
        self.state, self.scope, self.flat = state, scope, flat

    def __call__(self, tower: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        check_arguments(kwargs)
        call = TowerCall(self.scope)
        if not in_backward():  # a whole tower that is recomputed was recorded the first time
            call.recorder = self.state.recorder
        if tower.training and torch.is_grad_enabled():
            secure_checkpointing(tower, self.state)
        if self.flat:
            read_flat(call, args, kwargs)
        else:
            read_sequences(call, tower, args, kwargs, self.state.generation)
        self.state.open[self.scope] = call


class CloseCall:
    """Forward hook of a tower: stores the routing decisions of this call in its key-value cache."""

    def __init__(self, state: RoutingState, scope: str):
        self.state, self.scope = state, scope

    def __call__(self, tower: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        call = self.state.open.pop(self.scope, None)
        if call is None:  # the pre-hook raised
            return
        if call.to_cache:
            cache = key_value_cache(kwargs.get("past_key_values"))
            if cache is None:
                cache = key_value_cache(getattr(output, "past_key_values", None))
            if cache is not None:
                _store(cache, call)
        call.close()


def _store(cache: Cache, call: TowerCall) -> None:
    names, values = list(call.to_cache), list(call.to_cache.values())
    flat_BHTE = torch.cat(values, -1).unsqueeze(1)
    layer = call.cache_layer
    if layer is None:
        if call.past:
            return  # the layers themselves refuse a cache that lacks their decisions
        layer = RoutingCacheLayer(call.scope, names, [value.shape[-1] for value in values])
        cache.layers.append(layer)  # after the key-value layers exist, so that none of them moves
    layer.update(flat_BHTE, flat_BHTE[..., :0])


def in_backward() -> bool:
    """Whether this is a recomputation inside a backward pass; a graph is compiled in the forward pass."""
    return not torch.compiler.is_compiling() and bool(torch._C._current_graph_task_id() != -1)


# -- gradient checkpointing ----------------------------------------------------------------------------------


def checkpoint_contexts(
    state: RoutingState, around: Callable[[], tuple[Any, Any]] | None = None
) -> tuple[contextlib.AbstractContextManager[Any], contextlib.AbstractContextManager[Any]]:
    """`context_fn` of `torch.utils.checkpoint`: recompute with the calls that were open in the first pass."""
    first, again = around() if around is not None else (contextlib.nullcontext(), contextlib.nullcontext())
    return first, _both(again, state.restored(dict(state.open)))


@contextlib.contextmanager
def _both(
    outer: contextlib.AbstractContextManager[Any], inner: contextlib.AbstractContextManager[Any]
) -> Iterator[None]:
    with outer, inner:
        yield


def secure_checkpointing(tower: nn.Module, state: RoutingState) -> None:
    """Give every checkpointed block of a tower the `context_fn` that LiME needs, however checkpointing was
    switched on.

    Raises:
        ValueError: reentrant checkpointing, which silently loses the balance losses' gradient.
    """
    for module in _blocks(tower):
        if not vars(module).get("gradient_checkpointing"):  # where it is on, the instance says so
            continue
        function = getattr(module, "_gradient_checkpointing_func", None)
        options = dict(getattr(function, "keywords", None) or {})
        if function is checkpoint or options.get("use_reentrant") is not False:
            raise ValueError(
                "LiME needs non-reentrant gradient checkpointing; the reentrant kind gives wrong gradients "
                "and no error. Use model.gradient_checkpointing_enable("
                'gradient_checkpointing_kwargs={"use_reentrant": False})'
            )
        context = options.get("context_fn")
        if isinstance(context, functools.partial) and context.func is checkpoint_contexts:
            if context.args[0] is state:
                continue
            context = context.keywords["around"]  # LiME's own, of the model that this one was copied from
        secured = functools.partial(checkpoint_contexts, state, around=context)
        assert isinstance(function, functools.partial)
        module._gradient_checkpointing_func = functools.partial(  # type: ignore[assignment]
            function.func, *function.args, **{**options, "context_fn": secured}
        )


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """A module and those inside it but for the parts of adapted layers, which are most of them; walked each step."""
    yield module
    for child in module.children():
        if not isinstance(child, BaseTunerLayer):
            yield from _blocks(child)
