"""Virtual tokens in a key-value cache, hidden from everything outside the language model."""

from __future__ import annotations

from typing import Any

from transformers.cache_utils import Cache, DynamicLayer

from lime.tuner.routing.call import RoutingCacheLayer


class PromptCacheLayer(DynamicLayer):
    """Keys and values of the virtual tokens and, after them, of the user's tokens.

    Seen from outside, its length is that of the user's tokens, so that masks, positions, `generate` and cropping count
    as they would without a prompt; while the language model runs (`inside`), it is the true one.

    Attributes:
        names: adapters whose virtual tokens it begins with.
        tokens: how many those are.
    """

    def __init__(self, layer: DynamicLayer, names: tuple[str, ...], tokens: int):
        super().__init__()
        self.__dict__.update(layer.__dict__)
        self.names, self.tokens, self.inside = names, tokens, False

    def get_seq_length(self) -> int:
        length = super().get_seq_length()
        return length if self.inside or length == 0 else length - self.tokens

    def crop(self, tokens_to_remove: int) -> None:
        """Raises ValueError for more tokens than the user's."""
        if -tokens_to_remove > self.get_seq_length():
            raise ValueError(
                f"crop: cannot remove {-tokens_to_remove} of {self.get_seq_length()} tokens from the key-value cache"
            )
        super().crop(tokens_to_remove)


def held_prompt(cache: Any) -> PromptCacheLayer | None:
    """A layer of a filled cache that begins with virtual tokens; nothing where there are none.

    Raises:
        ValueError: a cache that cannot hold virtual tokens.
    """
    if cache is None:
        return None
    check_cache(cache)
    layers = [layer for layer in cache.layers if isinstance(layer, PromptCacheLayer) and layer.is_initialized]
    return layers[0] if layers else None


def check_cache(cache: Any) -> None:
    """Raise ValueError for anything but a dynamic cache of full attention."""
    wrong = "" if isinstance(cache, Cache) else type(cache).__name__
    for layer in [] if wrong else cache.layers:
        if type(layer) not in (DynamicLayer, PromptCacheLayer, RoutingCacheLayer):
            wrong = type(layer).__name__
    if wrong:
        raise ValueError(
            f"prompt_tuning needs a dynamic key-value cache with full attention, got {wrong}; a static or sliding one "
            "has no room for the virtual tokens"
        )


def mark(cache: Any, inside: bool) -> None:
    """Show the true length of the cache, while the language model runs, or that of the user's tokens."""
    for layer in cache.layers:
        if isinstance(layer, PromptCacheLayer):
            layer.inside = inside


def hide(cache: Any, names: tuple[str, ...], tokens: int) -> None:
    """Hide the virtual tokens that a cache has just been given."""
    check_cache(cache)
    for index, layer in enumerate(cache.layers):
        if not isinstance(layer, RoutingCacheLayer):
            cache.layers[index] = PromptCacheLayer(layer, names, tokens)
