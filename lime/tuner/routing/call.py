"""What one forward pass of a tower knows: real tokens, windows, the recorder.

Adapted layers see only hidden states. The innermost `PreTrainedModel` around them (language model or vision
tower) opens a `TowerCall` when it is entered and closes it when it returns (`lime.tuner.routing.hooks`); its layers
read the open call. So vision and text tokens never mix, nor do calls of different threads.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from lime.method import windows
from lime.tuner.routing.recorder import Recorder


class RoutingCacheLayer(DynamicLayer):
    """Routing probabilities of the cached tokens, as one more layer of a dynamic key-value cache.

    `keys` holds them as (B, 1, S, sum of experts over the layers of one scope); `values` is empty. Being a
    cache layer, it is reordered by beam search, cropped by assisted decoding, repeated and selected together
    with keys and values.
    """

    def __init__(self, scope: str, names: list[str], widths: list[int]):
        super().__init__()
        self.scope, self.names, self.widths = scope, names, widths


@dataclass(eq=False)
class TowerCall:
    """One forward pass of one tower.

    Attributes:
        scope: name of the tower in the model.
        mask_BT: true at the real tokens of this call; absent when all are.
        mask_BS: the same with the cached tokens before them, S = P + T.
        shape: (B, T), where that is known; of the mask, where there is one.
        batch: B, where that is known.
        past: number P of cached tokens.
        cached: a key-value cache was passed in, with tokens or still empty, as `generate` does.
        cache_layer: routing decisions of the cached tokens.
        lengths: tokens of each sequence where a tower lays its sequences end to end in one dimension,
            `total_tokens` in all.
        position_BT: positions of the tokens of this call, where they were given; they tell where a packed row begins
            another sequence. `repeats` as in `windows.borders`.
        deciding: number of leading columns whose tokens decide for a whole sequence; all of this call when absent.
        memory: what a decoder attends to beside its own tokens, (B, M, ·), and the call of those tokens.
        frames: mask of an audio tower's tokens, of their number, where its attention mask counts samples.
        unknown_padding: why real tokens and padding cannot be told apart in this call; empty where they can.
        unknown_order: why the sequences that tokens belong to are not known; empty where they are.
        recorder: collects the routing of this call.
    """

    scope: str
    mask_BT: Tensor | None = None
    mask_BS: Tensor | None = None
    shape: torch.Size | None = None
    batch: int | None = None
    past: int = 0
    cached: bool = False
    cache_layer: RoutingCacheLayer | None = None
    lengths: Tensor | None = None
    total_tokens: int = 0
    position_BT: Tensor | None = None
    repeats: bool = False
    deciding: int | None = None
    memory: tuple[Tensor, TowerCall] | None = None
    frames: Callable[[int], Tensor] | None = None
    unknown_padding: str = ""
    unknown_order: str = ""
    recorder: Recorder | None = None
    to_cache: dict[str, Tensor] = field(default_factory=dict)
    closed: bool = False
    _recorded: set[str] = field(default_factory=set)
    _padded: bool | None = None
    _anchors: dict[tuple[int, str, int], Tensor] = field(default_factory=dict)
    _index: dict[tuple[int, str, torch.Size], tuple[Tensor, Tensor]] = field(default_factory=dict)
    _past: dict[tuple[int, str], dict[str, Tensor]] = field(default_factory=dict)
    _real: dict[torch.dtype, Tensor] = field(default_factory=dict)
    _derived: dict[str, TowerCall] = field(default_factory=dict)
    _sequences: tuple[Tensor, int] | None = None

    def __post_init__(self) -> None:
        if self.shape is None and self.mask_BT is not None:
            self.shape = self.mask_BT.shape
        if self.batch is None and self.shape is not None:
            self.batch = self.shape[0]

    def seen(self, layer: str, x: Tensor) -> tuple[TowerCall, Tensor]:
        """The call of the tokens that a layer sees, and its input as (sequences, tokens, features).

        They are those of its tower, in (B, T, I) or in order as (B T, I); or those that a decoder attends to; or one
        row for each sequence (B, I), as a pooled token is. Of others nothing is known but that they are there.

        Raises:
            ValueError: nothing is known of the tokens, and the tower has padding.
        """
        shape = x.shape[:-1]
        memory = self.memory
        if memory is not None and (x is memory[0] or (shape != self.shape and shape == memory[0].shape[:-1])):
            return memory[1], x
        if shape == self.shape or (self.lengths is not None and x.dim() == 2):
            return self, x
        if x.dim() == 3 and self.shape is None and self.batch in (None, x.shape[0]):
            return self, x
        if x.dim() == 3 and self.frames is not None and x.shape[0] == self.batch:
            return self._of_frames(x.shape[1]), x
        if x.dim() == 2 and not _is_dispatched(layer.removeprefix(self.scope)):
            if self.shape is not None and shape[0] == self.shape.numel():
                return self, x.view(*self.shape, -1)
            if shape[0] == self.batch:
                return self._derive("rows"), x.unsqueeze(1)
        return self._unknown(layer, shape), x if x.dim() > 1 else x.unsqueeze(0)

    def _of_frames(self, tokens: int) -> TowerCall:
        assert self.frames is not None
        key = f"{tokens} frames"
        if key in self._derived:
            return self._derived[key]
        mask_BT = self.frames(tokens).bool()
        return self._derive(key, mask_BT=mask_BT, mask_BS=mask_BT)

    def _unknown(self, layer: str, shape: torch.Size) -> TowerCall:
        of_tower = "which of them form a sequence is unknown"
        if self.shape is not None:
            of_tower = f"those of its tower are {tuple(self.shape)}"
        reason = f"its input has tokens {tuple(shape)}, and {of_tower}"
        if self.is_padded():
            raise ValueError(
                f"{layer}: {reason}, with padding; adapt only layers that see every token of the sequence "
                "(target_modules, exclude_modules)"
            )
        return self._derive(reason, unknown_padding=self.unknown_padding, unknown_order=reason)

    def _derive(self, key: str, **fields: Any) -> TowerCall:
        """The call of other tokens in this tower's pass, made once."""
        if key not in self._derived:
            self._derived[key] = TowerCall(self.scope, closed=True, recorder=self.recorder, **fields)
        return self._derived[key]

    def real(self, dtype: torch.dtype) -> Tensor | None:
        """1 at real tokens and 0 at padding, shape (B, T, 1); absent when all are real."""
        if self.mask_BT is None:
            return None
        if dtype not in self._real:
            self._real[dtype] = self.mask_BT.unsqueeze(-1).to(dtype)
        return self._real[dtype]

    def real_where_padded(self, dtype: torch.dtype) -> Tensor | None:
        """As `real`, but on a CPU absent too where the mask, read once for all layers, says that all are real."""
        mask = self.mask_BT
        return None if mask is None or (mask.device.type == "cpu" and not self.is_padded()) else self.real(dtype)

    def is_padded(self) -> bool:
        """Whether there is padding, read once from the mask; where a graph is made, every mask counts."""
        if self.mask_BT is None:
            return False
        if torch.compiler.is_compiling() or torch.jit.is_tracing():
            return True
        if self._padded is None:
            self._padded = not bool(self.mask_BT.all())
        return self._padded

    def border_BS(self) -> Tensor | None:
        """True where a packed row begins another sequence, (B, S); absent where positions do not say."""
        if self.position_BT is None:
            return None
        border_BT = windows.borders(self.position_BT, self.mask_BT, repeats=self.repeats)
        return torch.nn.functional.pad(border_BT, (self.past, 0))

    def anchors(self, values: Tensor, n_gram: int, anchor: str) -> Tensor:
        """Column of each token's deciding token, relative to this call's first token; shape of `values` but
        its last."""
        tokens = values.shape[-2]
        key = (n_gram, anchor, tokens)
        if key not in self._anchors:
            if self.lengths is not None:
                # Layers after a patch merger see `lengths / merged` tokens of each sequence.
                lengths = self.lengths * tokens // self.total_tokens
                columns = windows.segment_anchor_columns(lengths, tokens, n_gram, anchor)
            else:
                real, border = self.mask_BS, self.border_BS()
                if real is None:
                    rows = 1 if border is None else len(border)
                    real = torch.ones(rows, self.past + tokens, dtype=torch.bool, device=values.device)
                elif border is not None:
                    border = border.expand_as(real)
                columns = windows.anchor_columns(real, n_gram, anchor, border)[:, -tokens:] - self.past
            self._anchors[key] = columns
        return self._anchors[key].expand(values.shape[:-1])

    def anchor_index(self, layer: str, x: Tensor, n_gram: int, anchor: str) -> tuple[Tensor, Tensor]:
        """Over the tokens of a layer's input end to end, (N,): each token's deciding token, of this call, as an index
        into them, int32; and whether it decides for itself.

        Raises:
            ValueError: real tokens and padding cannot be told apart.
        """
        self._check_windows(layer)
        key = (n_gram, anchor, x.shape[:-1])
        if key not in self._index:
            columns = self.anchors(x, n_gram, anchor)
            alone = windows.is_anchor(columns).flatten()
            tokens = x.shape[-2]
            first = torch.arange(0, alone.numel(), tokens, device=x.device).view(*x.shape[:-2], 1)
            self._index[key] = ((columns.clamp_min(0) + first).flatten().int(), alone)  # every layer keeps the index
        return self._index[key]

    def _check_windows(self, layer: str) -> None:
        if unknown := self.unknown_padding or self.unknown_order:
            raise ValueError(f"{layer}: n_gram above 1 counts windows over real tokens, but {unknown}")

    def wants_decisions(self, n_gram: int, anchor: str) -> bool:
        """Whether later calls may read this one's routing decisions from the cache."""
        return n_gram > 1 and anchor == "first" and not self.closed

    def share(self, layer: str, probabilities: Tensor, n_gram: int, anchor: str) -> Tensor:
        """Give every token the routing probabilities of its window's deciding token.

        With `first`, decisions of cached tokens are read from the cache and this call's are kept for it.

        Raises:
            RuntimeError: the cache was filled without this adapter, so earlier decisions are unknown.
            ValueError: real tokens and padding cannot be told apart.
        """
        self._check_windows(layer)
        columns = self.anchors(probabilities, n_gram, anchor)
        if anchor == "last":  # no token decides for one of a later call
            return windows.share(probabilities, columns.clamp_min(0))
        self._to_be_cached(layer, probabilities)
        if not self.past:
            return windows.share(probabilities, columns)
        return windows.share_with_past(probabilities, self._past_at(columns, (n_gram, anchor), layer), columns)

    def decide(self, layer: str, x: Tensor, of_means: Callable[[Tensor], Tensor]) -> Tensor:
        """One decision for each sequence, given to all its tokens, (B, T, E).

        It is taken where the sequence begins, and read from the key-value cache afterwards.

        Args:
            x: the layer's input, (B, T, I); (T, I) where sequences lie end to end.
            of_means: probabilities (B, E) from the mean input over the real tokens of each sequence, (B, I), which is
                at least float32.

        Raises:
            RuntimeError: the cache was filled without this adapter, so earlier decisions are unknown.
            ValueError: real tokens and padding cannot be told apart, or the sequences not.
        """
        if unknown := self.unknown_padding or self.unknown_order:
            raise ValueError(f"{layer}: routing by sequence averages real tokens, but {unknown}")
        tokens = x.shape[-2]
        packed = self._packed(x.shape[:-1])
        if packed is not None and self.past:
            raise ValueError(
                f"{layer}: routing by sequence decides where a sequence begins, but positions start again in a call "
                "with cached tokens; give packed rows at once"
            )
        if self.past:
            last = torch.full((x.shape[0], 1), -1, device=x.device)
            decided = self._past_at(last, (0, "sequence"), layer)
            return self._to_be_cached(layer, decided.expand(-1, tokens, -1))
        wide = torch.promote_types(x.dtype, torch.float32)
        if self.lengths is not None:
            lengths = self.lengths * tokens // self.total_tokens
            sequence_T = torch.repeat_interleave(lengths, output_size=tokens)
            sums = x.new_zeros(len(lengths), x.shape[-1], dtype=wide).index_add(0, sequence_T, x.to(wide))
            return of_means(sums / lengths.unsqueeze(-1).clamp_min(1)).index_select(0, sequence_T)
        mask = self.real(wide)
        if packed is not None:
            sequence_N, count = packed
            x_NI = x.flatten(0, -2).to(wide)
            real_N1 = torch.ones_like(x_NI[:, :1]) if mask is None else mask.view(-1, 1)
            sums = x_NI.new_zeros(count, x.shape[-1]).index_add(0, sequence_N, x_NI * real_N1)
            counts = x_NI.new_zeros(count, 1).index_add(0, sequence_N, real_N1)
            decided = of_means(sums / counts.clamp_min(1)).index_select(0, sequence_N)
            return self._to_be_cached(layer, decided.view(*x.shape[:-1], -1))
        means = _mean(x[..., : self.deciding, :], None if mask is None else mask[..., : self.deciding, :])
        return self._to_be_cached(layer, of_means(means).unsqueeze(-2).expand(*x.shape[:-1], -1))

    def _packed(self, shape: torch.Size) -> tuple[Tensor, int] | None:
        """Of rows that hold several sequences: the sequence of each token, (B T,), and their number. Reads on the host,
        once a call, whether there are such rows."""
        if self.position_BT is None or shape[-1] == 1:
            return None
        if self._sequences is None:
            border_BT = windows.borders(self.position_BT, self.mask_BT, repeats=self.repeats).expand(shape)
            sequence_BT = border_BT.sum(-1, keepdim=True).add_(1).cumsum(0).roll(1, 0)
            sequence_BT[0] = 0
            sequence_BT = sequence_BT + border_BT.cumsum(-1)
            self._sequences = sequence_BT.flatten(), len(border_BT) + int(border_BT.sum())
        return self._sequences if self._sequences[1] > shape[0] else None

    def _to_be_cached(self, layer: str, probabilities: Tensor) -> Tensor:
        if not self.closed:
            self.to_cache[layer] = probabilities.detach()
        return probabilities

    def _past_at(self, columns: Tensor, key: tuple[int, str], layer: str) -> Tensor:
        if key not in self._past:
            cached = self.cache_layer
            if cached is None or cached.get_seq_length() != self.past:
                raise RuntimeError(
                    f"{self.scope}: the key-value cache holds {self.past} tokens whose routing decisions are unknown, "
                    "because they were computed without this adapter; start again with an empty cache"
                )
            assert cached.keys is not None
            index = (columns + self.past).clamp(0, self.past - 1)
            flat = windows.share(cached.keys[:, 0], index)
            self._past[key] = dict(zip(cached.names, flat.split(cached.widths, -1), strict=True))
        if layer not in self._past[key]:
            raise RuntimeError(
                f"{layer}: its routing decisions are not in the key-value cache; start again with an empty one"
            )
        return self._past[key][layer]

    def close(self) -> None:
        """Drop what only the running call needs; a recorder may hold on to the rest, and a checkpointed segment."""
        self.closed = True
        self.to_cache, self._past, self.cache_layer = {}, {}, None
        if not torch.is_grad_enabled():
            self.memory = None

    def record(self, layer: str, probabilities: Tensor, weights: Tensor) -> None:
        """Hand the routing of a layer to the recorder, once: recomputation for a backward pass does not count
        again."""
        if self.recorder is not None and layer not in self._recorded:
            self._recorded.add(layer)
            self.recorder.add(self, layer, probabilities, weights)

    def record_sums(self, layer: str, probability_sum: Tensor, statistics: Tensor, tokens: int) -> None:
        """As `record`, of a layer that has summed already (`lime.method.fused`)."""
        if self.recorder is not None and layer not in self._recorded:
            self._recorded.add(layer)
            self.recorder.add_sums(self, layer, probability_sum, statistics, tokens)


def _mean(x: Tensor, real: Tensor | None) -> Tensor:
    """Mean over the real tokens, in float32 or wider, (…, I); zero where there are none."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    if real is None:
        return x.mean(-2)
    return (real.mT @ x).squeeze(-2) / real.sum(-2).clamp_min(1)


def _is_dispatched(layer: str) -> bool:
    """Whether a layer, by its name in the tower, is one of many under a block, as the experts of a mixture are: these
    are given some of the tokens, in an order of their own."""
    parts = layer.strip(".").split(".")
    return sum(part.isdigit() for part in parts) > 1 or any(re.fullmatch(r"experts?(_\d+)?", part) for part in parts)
