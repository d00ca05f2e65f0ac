"""Putting virtual tokens before a language model's input, and taking them out of its output.

Everything outside the language model counts the user's tokens alone: inputs, masks, positions, labels, logits, hidden
states, attentions and the length of the key-value cache keep their shapes.

Hooks are callable objects, not closures, so that models can be copied and pickled.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils import ModelOutput

from lime.method import windows
from lime.tuner.prompt.cache import check_cache, held_prompt, hide, mark
from lime.tuner.prompt.layer import Insertion, PromptLayer, prompt_layer
from lime.tuner.routing.hooks import check_arguments


class InsertPrompt:
    """Forward pre-hook of a language model: with an empty key-value cache, or none, it puts the virtual tokens before
    the input embeddings; with a filled one it makes mask and positions count those in the cache.

    Raises:
        ValueError: an attention mask that is not 2-D, or a cache that cannot hold virtual tokens.
        RuntimeError: the cache was filled under another prompt, or under none.
    """

    def __call__(
        self, tower: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        layer = prompt_layer(tower)
        if layer is None:
            return None
        check_arguments(kwargs)
        layer.running.insertion = Insertion()
        names = layer.acting()
        if args:
            kwargs = {**dict(zip(inspect.signature(tower.forward).parameters, args, strict=False)), **kwargs}
        cache = kwargs.get("past_key_values")
        if not names and cache is None:
            return None
        if names and cache is not None:
            check_cache(cache)
        held = held_prompt(cache) if names or _may_hold(cache) else None
        if held is not None and held.names != names:
            raise RuntimeError(_other_prompt(layer.key, held.names, names))
        if not names:
            return None
        past = 0 if cache is None else int(cache.get_seq_length())
        if past and held is None:
            raise RuntimeError(_other_prompt(layer.key, (), names))
        embeddings = _embeddings(tower, kwargs)
        mask = _mask(layer.key, kwargs, past + embeddings.shape[1])
        if held is None:
            _check_one_sequence(layer.key, kwargs.get("position_ids"), mask)
        positions = _positions(kwargs, mask, embeddings.shape[1])
        if held is None:
            prompt = layer(*_context(layer, embeddings, mask, cache is not None)).to(embeddings.dtype)
            tokens = prompt.shape[1]
            embeddings = torch.cat([prompt, embeddings], 1)
        else:
            tokens = held.tokens
        if positions is not None:
            positions = positions + tokens
            if held is None:
                first = torch.arange(tokens, device=positions.device, dtype=positions.dtype)
                positions = torch.cat([first.expand(*positions.shape[:-1], tokens), positions], -1)
        if mask is not None:
            mask = torch.cat([mask.new_ones(mask.shape[0], tokens), mask], 1)
        layer.running.insertion = Insertion(names, tokens, held is None, cache)
        if cache is not None:
            mark(cache, inside=True)
        kwargs |= {"input_ids": None, "inputs_embeds": embeddings, "attention_mask": mask, "position_ids": positions}
        return (), kwargs


class RemovePrompt:
    """Forward hook of a language model: takes the virtual tokens out of its output and hides them in its cache."""

    def __call__(self, tower: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        layer = prompt_layer(tower)
        if layer is None:
            return None
        call, layer.running.insertion = layer.running.insertion, Insertion()
        if call.cache is not None:
            mark(call.cache, inside=False)
        if not call.tokens or output is None:  # no prompt acts, or the forward pass raised
            return None
        if not isinstance(output, ModelOutput) or "last_hidden_state" not in output:
            raise TypeError(
                f"{layer.key}: expected the language model to return its last_hidden_state by name, got "
                f"{type(output).__name__}; call it with return_dict=True"
            )
        V = call.tokens
        first = slice(V, None) if call.inserted else slice(None)
        output["last_hidden_state"] = output["last_hidden_state"][:, first]
        if output.get("hidden_states") is not None:
            output["hidden_states"] = tuple(hidden[:, first] for hidden in output["hidden_states"])
        if output.get("attentions") is not None:
            output["attentions"] = tuple(
                None if each is None else each[:, :, first, V:] for each in output["attentions"]
            )
        cache = output.get("past_key_values")
        cache = call.cache if cache is None else cache
        if call.inserted and cache is not None:
            hide(cache, call.names, V)
        return output


def _may_hold(cache: Any) -> bool:
    """Whether a cache has layers of the kind that may begin with virtual tokens."""
    return bool(getattr(cache, "layers", None)) and any(hasattr(layer, "inside") for layer in cache.layers)


def _other_prompt(key: str, held: tuple[str, ...], acting: tuple[str, ...]) -> str:
    def say(names: tuple[str, ...]) -> str:
        return f"the prompt of {', '.join(names)}" if names else "no prompt"

    return (
        f"{key}: the key-value cache was filled with {say(held)}, now {say(acting)} is active; "
        "start again with an empty cache"
    )


def _embeddings(tower: nn.Module, kwargs: dict[str, Any]) -> Tensor:
    embeddings = kwargs.get("inputs_embeds")
    if embeddings is None:
        embeddings = tower.get_input_embeddings()(kwargs["input_ids"])  # type: ignore[operator]
    return embeddings


def _mask(key: str, kwargs: dict[str, Any], length: int) -> Tensor | None:
    mask = kwargs.get("attention_mask")
    if mask is None:
        return None
    if isinstance(mask, dict):
        raise ValueError(
            f"{key}: virtual tokens cannot be put into the masks that this model prepares for each kind of its "
            "attention; take another type than prompt_tuning"
        )
    if not isinstance(mask, Tensor) or mask.dim() != 2:
        shape = f"shape {tuple(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
        raise ValueError(f"{key}: expected an attention mask of shape (batch, tokens), got {shape}")
    if mask.shape[1] != length:
        raise ValueError(f"{key}: the attention mask covers {mask.shape[1]} tokens, expected {length}")
    return mask


def _check_one_sequence(key: str, positions: Any, mask: Tensor | None) -> None:
    """Raise ValueError for packed rows; reads on the host."""
    if not isinstance(positions, Tensor) or torch.compiler.is_compiling():
        return
    repeats = positions.dim() == 3 and positions.shape[0] != 4
    of_text = positions[0] if positions.dim() == 3 else positions.view(-1, positions.shape[-1])
    if windows.borders(of_text, None if mask is None else mask.bool(), repeats=repeats).any():
        raise ValueError(
            f"{key}: virtual tokens stand before the first sequence of a row alone, but positions start again; give "
            "each sequence a row of its own"
        )


def _positions(kwargs: dict[str, Any], mask: Tensor | None, new: int) -> Tensor | None:
    """Positions of the new tokens as if there were no prompt: those given, else counted over real tokens, so that
    padding on the left does not move a sequence away from its prompt."""
    positions: Tensor | None = kwargs.get("position_ids")
    if positions is None and mask is not None:
        positions = (mask.long().cumsum(-1) - 1).clamp_min(0)[:, -new:]
    return positions


def _context(layer: PromptLayer, embeddings: Tensor, mask: Tensor | None, cached: bool) -> tuple[Tensor, Tensor | None]:
    """Embeddings and mask to take the mean over: of the whole call, or of the prompt of a run of `generate`."""
    generation = layer.routing_state.generation
    if generation is None:
        return embeddings, mask
    columns = generation.deciding(layer.key, embeddings.shape[1], begins=cached)
    return embeddings[:, :columns], None if mask is None else mask[:, :columns]
