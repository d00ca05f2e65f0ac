"""Runs of `generate` under an adapter that decides once for a whole sequence."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lime.tuner.layers.base import LimeLayer
from lime.tuner.prompt.layer import PromptLayer
from lime.tuner.routing.state import Generation, RoutingState

ASSISTED = ("assistant_model", "assistant_early_exit", "prompt_lookup_num_tokens")


class GenerateOnePrompt:
    """`generate` of a model, as an attribute of the instance: marks the run, so that every forward pass in it takes
    means over the prompt's columns alone, with a key-value cache and without, whatever candidates a pass holds."""

    def __init__(self, model: Any, state: RoutingState):
        self.model, self.state = model, state

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        layer = next((m for m in self.model.modules() if isinstance(m, LimeLayer) and _decides_once(m)), None)
        if layer is None:
            return type(self.model).generate(self.model, *args, **kwargs)
        self._check(layer.key, kwargs)
        before, self.state.generation = self.state.generation, Generation(self._columns(args, kwargs))
        try:
            return type(self.model).generate(self.model, *args, **kwargs)
        finally:
            self.state.generation = before

    def _columns(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int | None:
        """Width of the prompt; nothing for an encoder-decoder, whose decoder is given another."""
        if self.model.config.is_encoder_decoder:
            return None
        given = (kwargs.get("inputs_embeds"), kwargs.get("input_ids"), kwargs.get("inputs"), *args[:1])
        return next((one.shape[1] for one in given if isinstance(one, Tensor) and one.dim() > 1), None)

    def _check(self, layer: str, kwargs: dict[str, Any]) -> None:
        """Raises ValueError for a strategy that splits the prompt, or hides where it ends."""

        def asked(option: str) -> bool:
            configs = (kwargs.get("generation_config"), self.model.generation_config)
            if kwargs.get(option) is not None:
                return True
            return getattr(next(one for one in configs if one is not None), option, None) is not None

        if asked("prefill_chunk_size"):
            raise ValueError(
                f"{layer} routes once for a whole sequence, by its prompt, which prefill_chunk_size takes apart; "
                "generate without it"
            )
        if self.model.config.is_encoder_decoder and any(asked(option) for option in ASSISTED):
            raise ValueError(
                f"{layer} routes once for a whole sequence; of an encoder-decoder, assisted decoding does not tell "
                "where the prompt ends. Generate without an assistant"
            )


def _decides_once(layer: LimeLayer) -> bool:
    """Whether an adapter that acts just now decides by means over a prompt."""
    if layer.disable_adapters:
        return False
    settings = [layer.lime_settings[name] for name in layer.active_adapters if name in layer.lime_settings]
    if isinstance(layer, PromptLayer):
        return any(one.enabled for one in settings)
    return any(one.spec.by_sequence for one in settings)
