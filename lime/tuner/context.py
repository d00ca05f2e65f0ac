"""What one forward pass of a tower knows: real tokens, windows, the recorder.

Adapted layers see only hidden states. The innermost `PreTrainedModel` around them (language model or vision
tower) opens a `ScopeCall` when it is entered and closes it when it returns (`lime.tuner.hooks`); its layers
read the open call. Vision and text tokens so never meet.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from lime.method import windows

if TYPE_CHECKING:
    from lime.tuner.recorder import Recorder


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
class ScopeCall:
    """One forward pass of one tower.

    Attributes:
        scope: name of the tower in the model.
        mask_BT: true at the real tokens of this call; absent when all are.
        mask_BS: the same with the cached tokens before them, S = P + T.
        past: number P of cached tokens.
        cached: a key-value cache was passed in, with tokens or still empty, as `generate` does.
        cache_layer: routing decisions of the cached tokens.
        lengths: tokens of each sequence where a tower lays its sequences end to end in one dimension,
            `total_tokens` in all.
        deciding: number of leading columns whose tokens decide for a whole sequence; all of this call when absent.
        unknown_padding: why real tokens and padding cannot be told apart in this call; empty where they can.
        recorder: collects the routing of this call.
    """

    scope: str
    mask_BT: Tensor | None = None
    mask_BS: Tensor | None = None
    past: int = 0
    cached: bool = False
    cache_layer: RoutingCacheLayer | None = None
    lengths: Tensor | None = None
    total_tokens: int = 0
    deciding: int | None = None
    unknown_padding: str = ""
    recorder: Recorder | None = None
    to_cache: dict[str, Tensor] = field(default_factory=dict)
    closed: bool = False
    _recorded: set[str] = field(default_factory=set)
    _padded: bool | None = None
    _anchors: dict[tuple[int, str, int], Tensor] = field(default_factory=dict)
    _index: dict[tuple[int, str, torch.Size], tuple[Tensor, Tensor]] = field(default_factory=dict)
    _past: dict[tuple[int, str], dict[str, Tensor]] = field(default_factory=dict)
    _kept: dict[torch.dtype, Tensor] = field(default_factory=dict)

    def kept(self, x: Tensor, layer: str, dtype: torch.dtype) -> Tensor | None:
        """1 at real tokens and 0 at padding, shape (B, T, 1), for a layer's input; absent when all are real.

        Raises:
            ValueError: the layer's tokens are not those of the mask.
        """
        if self.mask_BT is None:
            return None
        if x.shape[:-1] != self.mask_BT.shape:
            raise ValueError(
                f"{layer}: its input has tokens {tuple(x.shape[:-1])}, the attention mask of its tower has "
                f"{tuple(self.mask_BT.shape)}; adapt only layers that see every token of the sequence"
            )
        if dtype not in self._kept:
            self._kept[dtype] = self.mask_BT.unsqueeze(-1).to(dtype)
        return self._kept[dtype]

    def kept_where_padded(self, x: Tensor, layer: str, dtype: torch.dtype) -> Tensor | None:
        """As `kept`, but on a CPU absent too where the mask, read once for all layers, says that all are real."""
        if self._padded is None:
            mask = self.mask_BT
            self._padded = mask is not None and (mask.device.type != "cpu" or not bool(mask.all()))
        return self.kept(x, layer, dtype) if self._padded else None

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
            elif self.mask_BS is not None:
                columns = windows.anchor_columns(self.mask_BS, n_gram, anchor)[:, -tokens:] - self.past
            else:
                real = torch.ones(1, self.past + tokens, dtype=torch.bool, device=values.device)
                columns = windows.anchor_columns(real, n_gram, anchor)[:, -tokens:] - self.past
            self._anchors[key] = columns
        return self._anchors[key].expand(values.shape[:-1])

    def anchor_index(self, layer: str, x: Tensor, n_gram: int, anchor: str) -> tuple[Tensor, Tensor]:
        """Over the tokens of a layer's input end to end, (N,): each token's deciding token, of this call, as an index
        into them; and whether it decides for itself.

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
            self._index[key] = ((columns.clamp_min(0) + first).flatten(), alone)
        return self._index[key]

    def _check_windows(self, layer: str) -> None:
        if self.unknown_padding:
            raise ValueError(f"{layer}: n_gram above 1 counts windows over real tokens, but {self.unknown_padding}")

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
            ValueError: real tokens and padding cannot be told apart.
        """
        if self.unknown_padding:
            raise ValueError(f"{layer}: routing by sequence averages real tokens, but {self.unknown_padding}")
        tokens = x.shape[-2]
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
        mask = None if self.mask_BT is None else self.kept(x, layer, wide)
        means = _mean(x[..., : self.deciding, :], None if mask is None else mask[..., : self.deciding, :])
        return self._to_be_cached(layer, of_means(means).unsqueeze(-2).expand(*x.shape[:-1], -1))

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
        """Drop what only the running call needs; a recorder may hold on to the rest."""
        self.closed = True
        self.to_cache, self._past, self.cache_layer = {}, {}, None

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


def _mean(x: Tensor, kept: Tensor | None) -> Tensor:
    """Mean over the tokens that are kept, in float32 or wider, (…, I); zero where there are none."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    if kept is None:
        return x.mean(-2)
    return (kept.mT @ x).squeeze(-2) / kept.sum(-2).clamp_min(1)


@dataclass
class Generation:
    """One run of `generate`. `columns`: width of its prompt in each language model, known from the first pass."""

    columns: dict[str, int] = field(default_factory=dict)


class RoutingState:
    """The calls that are open in one model, its recorder and run of `generate`; shared by all its adapted layers."""

    def __init__(self) -> None:
        self.open: dict[str, ScopeCall] = {}
        self.recorder: Recorder | None = None
        self.generation: Generation | None = None

    def call(self, scope: str) -> ScopeCall | None:
        return self.open.get(scope)

    @contextlib.contextmanager
    def restored(self, calls: dict[str, ScopeCall]) -> Iterator[None]:
        """Make earlier calls current again, while a checkpointed segment is recomputed."""
        before, self.open = self.open, calls
        try:
            yield
        finally:
            self.open = before

    def __deepcopy__(self, memo: dict[int, object]) -> RoutingState:
        new = RoutingState()
        memo[id(self)] = new
        return new

    def __getstate__(self) -> dict[str, object]:
        return {}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__init__()  # type: ignore[misc]
