"""One pass over test rows, a row at a time: routing of every token, updates, hidden states.

The model reads the prompt alone, as at the start of generation, and never an answer. A row is a batch of its own, so
that whatever a tower makes of it (tiles, frames) belongs to it, and no padding exists.

Shapes: R rows, T tokens of a row, E experts, O outputs, H width of the language model, L blocks, N windows, n tokens of
a window, P rows of a mixture's stacked down-projections.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lime.analysis.routing import RoutedRows
from lime.data.rows import Row
from lime.method.deltas.moe_lora import MoELoRADelta
from lime.method.fused import use
from lime.system.progress import ProgressDisplay
from lime.tuner.layers.linear import LimeLinear
from lime.tuner.model import lime_layers, routing_state
from lime.tuner.routing.recorder import TokenRecorder


@dataclass(frozen=True)
class Wanted:
    """What to keep beside the routing.

    Attributes:
        states: hidden states of every block at the last prompt token, and updates of every adapted layer there.
        maps: number of adapted layers, spread over the depth, whose updates are kept at random tokens.
        tokens: random tokens of a row for the maps.
        window: tokens n of a window, counted over real tokens from the first; 0: no windows.
        windows: random whole windows of a row.
    """

    states: bool = False
    maps: int = 0
    tokens: int = 3
    window: int = 0
    windows: int = 2


@dataclass
class Cloud:
    """Updates of one layer at random tokens, and the expert with the largest weight there."""

    updates_NO: np.ndarray
    dominant_N: np.ndarray


@dataclass
class Collected:
    """What one pass found. Layers by their full names, all in the order of the model.

    Attributes:
        rows: the rows that were read.
        routing: of the layers that have experts, on the rows that reach them.
        seen: indices of these rows: a vision tower sees no text row.
        states_LRH: hidden states after the embedding (0) and after each block, at the last prompt token.
        updates: what each adapted layer adds to its frozen output at its last token, for the rows that reach it.
        clouds: of the layers of the maps.
        windows_LNnH: hidden states at the positions of windows, N over rows and windows.
        window_rows: the row of each window, (N,).
        moments: E[u u^T], (P, P), of the MoE-LoRA layers, over all tokens.
    """

    rows: list[Row] = field(default_factory=list)
    routing: dict[str, RoutedRows] = field(default_factory=dict)
    seen: dict[str, np.ndarray] = field(default_factory=dict)
    states_LRH: np.ndarray | None = None
    updates: dict[str, np.ndarray] = field(default_factory=dict)
    clouds: dict[str, Cloud] = field(default_factory=dict)
    windows_LNnH: np.ndarray | None = None
    window_rows: np.ndarray | None = None
    moments: dict[str, np.ndarray] = field(default_factory=dict)

    def states(self) -> np.ndarray:
        """`states_LRH` of a pass that was asked for them."""
        assert self.states_LRH is not None
        return self.states_LRH


class _Pass:
    """Hooks on a model, and what they gather of the row under way."""

    def __init__(self, model: nn.Module, wanted: Wanted):
        self.model, self.wanted = model, wanted
        self.layers = [layer for layer in lime_layers(model) if layer.lime_settings]
        linear = [layer for layer in self.layers if isinstance(layer, LimeLinear)]
        spread = np.linspace(0, len(linear) - 1, min(wanted.maps, len(linear))).round().astype(int)
        self.linear = {layer.key for layer in linear}
        self.mapped = {linear[index].key for index in dict.fromkeys(spread.tolist())}
        self.recorder = TokenRecorder()
        self.shares: dict[str, list[tuple[np.ndarray, np.ndarray, np.ndarray, float]]] = {}
        self.last: dict[str, list[np.ndarray]] = {}
        self.cloud: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
        self.moments: dict[str, tuple[Tensor, int]] = {}
        self.seen: dict[str, list[int]] = {}
        self.row = 0
        self.draw = np.random.default_rng(0)

    @contextmanager
    def hooked(self) -> Iterator[None]:
        handles = [layer.register_forward_hook(self._after) for layer in self.layers if isinstance(layer, LimeLinear)]
        state = routing_state(self.model)
        before = None if state is None else state.recorder
        try:
            with use("torch"):
                if state is not None:
                    state.recorder = self.recorder
                yield
        finally:
            if state is not None:
                state.recorder = before
            for handle in handles:
                handle.remove()

    def start(self, row: Row, index: int) -> None:
        self.row = index
        self.recorder.calls.clear()
        self.draw = np.random.default_rng(zlib.crc32(row.id.encode()))

    def end(self) -> None:
        for key, pairs in self.recorder.calls.items():
            p_TE, w_TE = (torch.cat(side).float() for side in zip(*pairs, strict=True))
            entropy = float(torch.special.entr(p_TE).sum(-1).mean())
            if key not in self.linear:
                self.seen.setdefault(key, []).append(self.row)
            active_E, largest_E = (w_TE > 0).float().mean(0), _largest(p_TE)
            share = (_numpy(p_TE.mean(0)), _numpy(active_E), _numpy(largest_E), entropy)
            self.shares.setdefault(key, []).append(share)

    @torch.no_grad()
    def _after(self, layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        assert isinstance(layer, LimeLinear)
        if layer.disable_adapters:
            return
        x, key = inputs[0], layer.key
        self.seen.setdefault(key, []).append(self.row)
        (name,) = layer.active_adapters
        delta = layer.lime_delta[name]
        if isinstance(delta, MoELoRADelta):
            u_TP = (x.to(delta.compute_dtype) @ delta.A.t()).flatten(0, -2).double()
            before, count = self.moments.get(key, (torch.zeros((), dtype=torch.double, device=u_TP.device), 0))
            self.moments[key] = before + u_TP.t() @ u_TP, count + len(u_TP)
        if not self.wanted.states and key not in self.mapped:
            return
        update_TO = update_of(layer, name, x).flatten(0, -2)
        if self.wanted.states:
            self.last.setdefault(key, []).append(_numpy(update_TO[-1]))
        if key in self.mapped and key in self.recorder.calls:
            weights_TE = self.recorder.calls[key][-1][1]
            at = self.draw.choice(len(update_TO), min(self.wanted.tokens, len(update_TO)), replace=False)
            self.cloud.setdefault(key, []).append((_numpy(update_TO[at]), _numpy(weights_TE[at].argmax(-1))))


@torch.no_grad()
def collect(
    model: nn.Module, collator: Any, rows: Sequence[Row], wanted: Wanted, title: str, frozen: bool = False
) -> Collected:
    """Read every row once, in evaluation mode.

    Args:
        collator: of the run's data.
        title: what the progress display calls it.
        frozen: with the adapter switched off; there is then no routing and no update.

    Raises:
        ValueError: no row could be read.
    """
    model.eval()
    device = next(model.parameters()).device
    gathered, found = _Pass(model, wanted), Collected()
    states_RLH: list[np.ndarray] = []
    windows: list[tuple[int, np.ndarray]] = []
    off = model.disable_adapter() if frozen else nullcontext()  # type: ignore[operator]
    with gathered.hooked(), off, ProgressDisplay(title, len(rows)) as display:
        for row in rows:
            batch = collator.prompt_batch([row])
            display.advance()
            if not len(batch["rows"]):
                continue
            inputs = {key: value.to(device) for key, value in batch.items() if isinstance(value, Tensor)}
            gathered.start(row, len(found.rows))
            hidden = wanted.states or wanted.window > 0
            output = model(**inputs, use_cache=False, output_hidden_states=hidden, logits_to_keep=1)
            gathered.end()
            if wanted.states:
                states_RLH.append(np.stack([_numpy(h[0, -1]) for h in output.hidden_states]))
            if wanted.window:
                draw = np.random.default_rng(zlib.crc32(f"windows {row.id}".encode()))
                windows += [(len(found.rows), part) for part in _windows(output.hidden_states, wanted, draw)]
            found.rows.append(row)
    if not found.rows:
        raise ValueError("no test row could be read: there is nothing to analyse")
    for key, shares in gathered.shares.items():
        probability, active, largest, entropy = zip(*shares, strict=True)
        found.routing[key] = RoutedRows(np.stack(probability), np.stack(active), np.stack(largest), np.array(entropy))
    for key, parts in gathered.cloud.items():
        found.clouds[key] = Cloud(*(np.concatenate(side) for side in zip(*parts, strict=True)))
    found.seen = {key: np.array(rows) for key, rows in gathered.seen.items()}
    found.updates = {key: np.stack(parts) for key, parts in gathered.last.items()}
    found.moments = {key: _numpy(total / count) for key, (total, count) in gathered.moments.items()}
    if states_RLH:
        found.states_LRH = np.stack(states_RLH, axis=1)
    if windows:
        found.window_rows = np.array([row for row, _ in windows])
        found.windows_LNnH = np.stack([part for _, part in windows], axis=1)
    return found


def update_of(layer: LimeLinear, name: str, x: Tensor) -> Tensor:
    """What the adapter `name` adds to the layer's frozen output, (..., T, O) in float32 or wider: the modulated update
    `zhat * (P + gamma p_s)`, or the weighted sum of a mixture's experts. To be called while the tower's call is open.

    Computed by itself, since the difference of two outputs in bf16 would lose a third of it.

    Args:
        x: the layer's whole input, (..., T, I): windows are counted over all its tokens.
    """
    call, tokens = layer.open_call().seen(layer.key, x)
    z = layer.base_layer(tokens)
    zero = torch.zeros_like(z, dtype=torch.promote_types(z.dtype, torch.float32))
    return layer.add_update(name, tokens, z, zero, call).view(*x.shape[:-1], -1)


def _largest(p_TE: Tensor) -> Tensor:
    """Share of tokens whose largest probability is each expert's, (E,); experts that tie share the token."""
    wins_TE = (p_TE == p_TE.amax(-1, keepdim=True)).float()
    return (wins_TE / wins_TE.sum(-1, keepdim=True)).mean(0)


def _windows(hidden: Sequence[Tensor], wanted: Wanted, draw: np.random.Generator) -> list[np.ndarray]:
    """Hidden states (L, n, H) of some of the row's whole windows; none where it is shorter than one."""
    whole = hidden[0].shape[1] // wanted.window
    chosen = draw.choice(whole, min(wanted.windows, whole), replace=False) * wanted.window
    return [np.stack([_numpy(h[0, start : start + wanted.window]) for h in hidden]) for start in chosen.tolist()]


def _numpy(tensor: Tensor) -> np.ndarray:
    tensor = tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor
    return tensor.numpy(force=True)
