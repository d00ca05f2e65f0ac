"""Reading test rows once: the frozen outputs of adapted layers, from which the routing of every setting follows; and a
trained adapter's own routing.

The model reads the prompt alone, a row at a time, as in `lime.analysis.study.collecting`.

Shapes: N tokens of all rows, T tokens of a row, E experts, O outputs.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from lime.analysis.decisions.measures import Tokens
from lime.data.rows import Row
from lime.method.fused import use
from lime.system.progress import ProgressDisplay
from lime.tuner.layers.frozen_linear import shape_of
from lime.tuner.layers.linear import LimeLinear
from lime.tuner.model import lime_layers, routing_state
from lime.tuner.routing.recorder import TokenRecorder
from lime.tuner.routing.router import Router
from lime.tuner.settings import CALIBRATED_NORMS, ROUTING_NORMS, LimeSettings

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Setting:
    """What of the routing is varied; options of `LimeSettings`."""

    routing_norm: str = "slice"
    feature_slice: str = "leading"
    gamma_routing: float = 0.7
    num_experts: int = 4
    temperature: float = 0.5

    def __str__(self) -> str:
        return ", ".join([self.routing_norm, *self.changes()])

    def changes(self) -> list[str]:
        """Beside the norm, what is not the default."""
        default = Setting()
        return [
            f"{one.name}={getattr(self, one.name)}"
            for one in fields(self)
            if one.name != "routing_norm" and getattr(self, one.name) != getattr(default, one.name)
        ]


def settings_to_try() -> list[Setting]:
    """For each norm the defaults, and each of the other options varied by itself; less for those calibrated on rows."""
    changes: list[dict[str, Any]] = [{}]
    changes += [{"gamma_routing": gamma} for gamma in (0.0, 1.0)]
    changes += [{"num_experts": experts} for experts in (2, 8, 64)]
    changes += [{"feature_slice": features} for features in ("random", "central", "trailing")]
    changes += [{"temperature": 0.25}, {"num_experts": 64, "gamma_routing": 0.0}]
    rows: list[dict[str, Any]] = [{}, {"gamma_routing": 0.0}, {"num_experts": 64}, {"feature_slice": "variance"}]
    settings = [Setting(norm, **change) for norm in ROUTING_NORMS if norm not in CALIBRATED_NORMS for change in changes]
    settings += [Setting(norm, **change) for norm in CALIBRATED_NORMS for change in rows]
    return [*settings, Setting(feature_slice="variance")]


@dataclass
class Frozen:
    """One adapted layer: its frozen output in each row, (T, O), by which every setting routes."""

    layer: LimeLinear
    outputs: list[Tensor] = field(default_factory=list)

    def routed(self, setting: Setting, base: LimeSettings) -> tuple[Tensor, Tensor]:
        """Probabilities and weights of every token, (N, E), before training: the update is zero.

        Args:
            base: what the setting does not say; every token decides for itself, whatever its `n_gram`. What a
                run calibrates on training rows is calibrated on these rows here.
        """
        settings = replace(base, router="zero", n_gram=1, **vars(setting))
        router = Router(shape_of(self.layer.base_layer), settings, self.layer.key, torch.float32).eval()
        together = setting.routing_norm != "tensor"  # that norm looks at all tokens of a batch, here of a row
        if settings.calibrates:
            z_NO = torch.cat(self.outputs).float()
            router.calibrate(z_NO.mean(0), z_NO.var(0, correction=0))
        z_parts = [torch.cat(self.outputs)] if together else self.outputs
        parts = []
        for z_TO in z_parts:
            zhat_TO = torch.zeros_like(z_TO)
            parts.append(router.zero_probabilities(router.pick(z_TO), router.pick(zhat_TO), z_TO, zhat_TO, None))
        p_NE = torch.cat(parts).cpu()
        return p_NE, router.select(p_NE)


@torch.no_grad()
def frozen_pass(model: nn.Module, collator: Any, rows: Sequence[Row]) -> tuple[dict[str, Frozen], Tokens, list[Row]]:
    """The frozen outputs of every layer that LiME adapts, by name; the tokens; and the rows that could be read."""
    layers = {layer.key: Frozen(layer) for layer in lime_layers(model) if isinstance(layer, LimeLinear)}

    def keep(layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        assert isinstance(layer, LimeLinear)
        layers[layer.key].outputs.append(output.detach().flatten(0, -2))

    handles = [one.layer.register_forward_hook(keep) for one in layers.values()]
    try:
        with model.disable_adapter():  # type: ignore[operator]
            tokens, read = _read(model, collator, rows, "frozen backbone")
    finally:
        for handle in handles:
            handle.remove()
    seen = {key: one for key, one in layers.items() if _is_whole(key, sum(map(len, one.outputs)), tokens)}
    return seen, tokens, read


@torch.no_grad()
def adapted_pass(
    model: nn.Module, collator: Any, rows: Sequence[Row], title: str
) -> tuple[dict[str, tuple[Tensor, Tensor]], Tokens, list[Row]]:
    """Probabilities and weights of every token, (N, E), by layer, as the adapter routes; the tokens; the rows."""
    state = routing_state(model)
    assert state is not None
    before, state.recorder = state.recorder, (recorder := TokenRecorder())
    try:
        with use("torch"):
            tokens, read = _read(model, collator, rows, title)
    finally:
        state.recorder = before
    routed = {key: _joined(pairs) for key, pairs in recorder.calls.items()}
    return {key: pair for key, pair in routed.items() if _is_whole(key, len(pair[0]), tokens)}, tokens, read


def _joined(pairs: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    p_NE, w_NE = (torch.cat(side).cpu() for side in zip(*pairs, strict=True))
    return p_NE, w_NE


def _is_whole(key: str, count: int, tokens: Tokens) -> bool:
    """Whether a layer saw the prompts' tokens: identity and position are theirs."""
    if count == len(tokens.row_N):
        return True
    log.info("%s is left out: it saw %d tokens, the prompts have %d", key, count, len(tokens.row_N))
    return False


def _read(model: nn.Module, collator: Any, rows: Sequence[Row], title: str) -> tuple[Tokens, list[Row]]:
    model.eval()
    device = next(model.parameters()).device
    read, prompts = [], []
    with ProgressDisplay(title, len(rows)) as display:
        for row, inputs in _prompts(collator, rows, device):
            model(**inputs, use_cache=False, logits_to_keep=1)
            display.advance()
            read.append(row)
            prompts.append(inputs["input_ids"][0])
    if not read:
        raise ValueError("no test row could be read: there is nothing to measure")
    return Tokens.of(prompts, [row.split for row in read]), read


def _prompts(collator: Any, rows: Sequence[Row], device: torch.device) -> Iterator[tuple[Row, dict[str, Tensor]]]:
    for row in rows:
        batch = collator.prompt_batch([row])
        if len(batch["rows"]):
            yield row, {key: value.to(device) for key, value in batch.items() if isinstance(value, Tensor)}
