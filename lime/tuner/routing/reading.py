"""What a tower's arguments tell of its tokens: how many there are, which are real, which are cached.

Shapes: B sequences, P cached tokens, T tokens of this call, S = P + T.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel

from lime.tuner.routing.call import RoutingCacheLayer, TowerCall
from lime.tuner.routing.state import Generation

MEMORIES = {
    "encoder_hidden_states": "encoder_attention_mask",
    "cross_attention_states": None,
}
"""Arguments that hold what a decoder attends to beside its own tokens, and their masks."""
STATES = ("cache_params", "state", "mems", "past_buckets_states")
"""Arguments that hold what earlier calls left, but neither the number of their tokens nor routing decisions."""


def read_sequences(
    call: TowerCall, tower: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], generation: Generation | None
) -> None:
    """Language models, and vision or audio towers with a batch dimension: (B, T) tokens and an optional 2-D mask. In a
    run of `generate` the tokens of its prompt decide for their sequences, with a cache and without.

    Raises:
        ValueError: a mask of another number of tokens.
    """
    if args:
        kwargs = {**dict(zip(_names(type(tower).forward), args, strict=False)), **kwargs}
    tokens = _tokens(kwargs)
    if tokens is not None:
        queries = kwargs.get("query_embeds")  # of a Q-Former, before its text
        before = queries.shape[1] if isinstance(queries, Tensor) and queries is not tokens else 0
        call.shape = torch.Size((tokens.shape[0], before + tokens.shape[1]))
    call.batch = _batch(tower, tokens, kwargs)
    _read_memory(call, kwargs)
    _read_cache(call, kwargs)
    if generation is not None and call.shape is not None:
        call.deciding = generation.deciding(call.scope, call.shape[1], call.cached and not call.past)
    if not (call.cached and call.unknown_padding):  # a static cache covers more than the tokens so far
        _read_mask(call, tower, kwargs.get("attention_mask"))
    _read_positions(call, kwargs.get("position_ids"))


@functools.cache
def _names(forward: Callable[..., Any]) -> tuple[str, ...]:
    return tuple(inspect.signature(forward).parameters)[1:]


def _tokens(kwargs: dict[str, Any]) -> Tensor | None:
    """Embeddings or token ids, (B, T, ·) or (B, T)."""
    embeddings = kwargs.get("inputs_embeds")
    if isinstance(embeddings, Tensor):
        return embeddings if embeddings.dim() == 3 else None
    ids = kwargs.get("input_ids")
    if ids is None:  # a module of another library may call them otherwise
        ids = next(iter(kwargs.values()), None)
    return ids if isinstance(ids, Tensor) and ids.dim() == 2 and not ids.is_floating_point() else None


def _batch(tower: nn.Module, tokens: Tensor | None, kwargs: dict[str, Any]) -> int | None:
    main = tokens if tokens is not None else next((v for v in kwargs.values() if isinstance(v, Tensor)), None)
    if main is None or not (main.dim() > 2 or tokens is not None or isinstance(tower, PreTrainedModel)):
        return None  # rows of which nothing is known
    return main.shape[0]


def _read_memory(call: TowerCall, kwargs: dict[str, Any]) -> None:
    for name, of_mask in MEMORIES.items():
        states = kwargs.get(name)
        if not isinstance(states, Tensor) or states.dim() != 3:
            continue
        mask = kwargs.get(of_mask) if of_mask else None
        memory = TowerCall(call.scope, recorder=call.recorder, closed=True)
        memory.shape, memory.batch = states.shape[:2], states.shape[0]
        if isinstance(mask, Tensor) and mask.shape == states.shape[:2]:
            memory.mask_BT = memory.mask_BS = mask.bool()
        elif mask is not None:
            memory.unknown_padding = f"{of_mask} is not 2-D (batch, tokens) but {_shape(mask)}"
        call.memory = states, memory


def key_value_cache(cache: Any) -> Cache | None:
    """The key-value cache of a model's own tokens: of an encoder-decoder, that of its self-attention."""
    cache = getattr(cache, "self_attention_cache", cache)
    return cache if isinstance(cache, Cache) else None


def _read_cache(call: TowerCall, kwargs: dict[str, Any]) -> None:
    given = kwargs.get("past_key_values")
    cache = key_value_cache(given)
    foreign = next((name for name in STATES if kwargs.get(name) is not None), None)
    if foreign is not None or (given is not None and cache is None):
        call.unknown_order = (
            f"{foreign or 'past_key_values'} keeps neither their number nor routing decisions from earlier calls; run "
            "with use_cache=False"
        )
    if cache is None:
        return
    call.cached = True
    if cache.is_compileable:
        call.unknown_padding = "a static key-value cache does not keep them; use a dynamic one"
        return
    call.past = int(cache.get_seq_length())
    call.cache_layer = next(
        (layer for layer in cache.layers if isinstance(layer, RoutingCacheLayer) and layer.scope == call.scope), None
    )


def _read_mask(call: TowerCall, tower: nn.Module, mask: Any) -> None:
    if isinstance(mask, dict) and "full_attention" in mask:
        mask = _real_tokens(mask["full_attention"])
    if mask is None:
        return
    if not isinstance(mask, Tensor) or mask.dim() != 2:
        call.unknown_padding = f"the attention mask is not 2-D (batch, tokens) but {_shape(mask)}"
        return
    if call.shape is not None:
        T = call.shape[1]
        past = mask.shape[1] - T if call.unknown_order else call.past
        if mask.shape[1] != past + T:
            raise ValueError(
                f"{call.scope}: the attention mask covers {mask.shape[1]} tokens, expected {past} cached and {T} new "
                "ones"
            )
        call.mask_BS = mask.bool()
        call.mask_BT = call.mask_BS[:, past:]
        if past != call.past:
            call.mask_BS = call.mask_BT
    else:
        call.mask_BT = call.mask_BS = mask.bool()
        downsampled = getattr(tower, "_get_feature_vector_attention_mask", None)
        if downsampled is not None:
            call.frames = functools.partial(_frames, downsampled, mask)
    call.shape = call.mask_BT.shape


def _real_tokens(prepared: Any) -> Any:
    """The 2-D mask behind one for each query, (B, 1, T, S), that the model around a tower has prepared (Gemma 3): the
    last query sees every real token. Anything else is returned as it is."""
    if not isinstance(prepared, Tensor) or prepared.dim() != 4:
        return prepared
    last_BS = prepared[:, 0, -1]
    return last_BS if last_BS.dtype == torch.bool else last_BS == 0


def _frames(downsampled: Any, mask: Tensor, tokens: int) -> Tensor:
    options = {"add_adapter": False} if "add_adapter" in inspect.signature(downsampled).parameters else {}
    mask_BT: Tensor = downsampled(tokens, mask, **options)
    return mask_BT


def _read_positions(call: TowerCall, positions: Any) -> None:
    """(B, T), (T,), or several kinds of positions for each token, (K, B, T): first those of the text, of four; else, of
    three, the temporal ones, which the tokens of an image share."""
    if not isinstance(positions, Tensor) or call.shape is None or positions.shape[-1:] != call.shape[1:]:
        return
    if positions.dim() == 3:
        call.position_BT, call.repeats = positions[0], positions.shape[0] != 4
    elif positions.dim() <= 2:
        call.position_BT = positions if positions.dim() == 2 else positions.unsqueeze(0)


def _shape(mask: Any) -> str:
    return f"shape {tuple(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__


def read_flat(call: TowerCall, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Qwen2-VL's vision tower: the patches of all images in one dimension, no mask, `grid_thw` (images,
    3)."""
    patches = args[0] if args else kwargs["hidden_states"]
    grid = args[1] if len(args) > 1 else kwargs["grid_thw"]
    call.lengths = grid.to(patches.device).prod(-1)
    call.total_tokens = patches.shape[0]
