"""n-gram windows: consecutive real tokens that share one routing decision.

Windows are counted over the real (unmasked) tokens of each sequence, so that padding on either side moves
nothing. A row may hold several sequences, packed: then they begin again at each border.

Shapes: B sequences, P earlier tokens (in the key-value cache), T tokens of this call, S = P + T, E experts.
"""

from __future__ import annotations

import torch
from torch import Tensor


def anchor_columns(mask_BS: Tensor, n_gram: int, anchor: str, border_BS: Tensor | None = None) -> Tensor:
    """Column of the token at which each token's window decides; int64, shape (B, S).

    A masked token is its own anchor. With `first`, the anchor of the real token at position p (counted over the
    real tokens of its sequence) is the real token at `p - p mod n`: causal. With `last` it is the one at
    `min(p - p mod n + n - 1, last real token)`.

    Args:
        mask_BS: true at real tokens.
        n_gram: window length n.
        anchor: `first` or `last`.
        border_BS: true at the first token of every further sequence of a row (`borders`).

    Raises:
        ValueError: unknown anchor.
    """
    B, S = mask_BS.shape
    column_BS = torch.arange(S, device=mask_BS.device).expand(B, S)
    count_BS = mask_BS.long().cumsum(-1)
    position_BS = (count_BS - 1).clamp_min(0)
    last_BS = (count_BS[:, -1:] - 1).clamp_min(0)
    if border_BS is None:
        start_BS = position_BS - position_BS % n_gram
    else:
        first_BS = torch.where(border_BS, position_BS, 0).cummax(-1).values
        start_BS = position_BS - (position_BS - first_BS) % n_gram
        next_BS = torch.where(border_BS, position_BS, S).roll(-1, -1)
        next_BS[:, -1] = S
        last_BS = torch.minimum(last_BS, next_BS.flip(-1).cummin(-1).values.flip(-1) - 1).clamp_min(0)
    if anchor == "first":
        wanted_BS = start_BS
    elif anchor == "last":
        wanted_BS = torch.minimum(start_BS + n_gram - 1, last_BS)
    else:
        raise ValueError(f"window_anchor: expected first or last, got {anchor!r}")
    # Column of the real token at each position; masked tokens write to a spare last place.
    place_BS = torch.where(mask_BS, position_BS, S)
    column_of_BS = column_BS.new_zeros(B, S + 1).scatter_(1, place_BS, column_BS)
    return torch.where(mask_BS, column_of_BS.gather(1, wanted_BS), column_BS)


def borders(position_BT: Tensor, mask_BT: Tensor | None = None, *, repeats: bool = False) -> Tensor:
    """True at real tokens whose position does not continue that of the real token before: there another sequence
    begins; shape (B, T).

    Args:
        position_BT: positions as a language model takes them.
        mask_BT: true at real tokens; all when absent. As attention does, positions that leap forward then count as a
            border too.
        repeats: the first of three-dimensional rotary positions, where the tokens of an image share one and text after
            a long clip takes a smaller one than its last frame: only a position that goes back to 0 counts.
    """
    if mask_BT is None:
        step_BT = position_BT.diff(dim=-1)
        border_BT = (step_BT < 0) & (position_BT[..., 1:] == 0) if repeats else step_BT != 1
        return torch.nn.functional.pad(border_BT, (1, 0))
    B, T = mask_BT.shape
    position_BT = position_BT.expand(B, T)
    column_BT = torch.arange(T, device=mask_BT.device).expand(B, T)
    before_BT = torch.nn.functional.pad(torch.where(mask_BT, column_BT, -1).cummax(-1).values[:, :-1], (1, 0), value=-1)
    step_BT = position_BT - position_BT.gather(-1, before_BT.clamp_min(0))
    real_BT = mask_BT & (before_BT >= 0)
    if repeats:
        return real_BT & (step_BT < 0) & (position_BT == 0)
    start_B1 = position_BT.gather(-1, mask_BT.int().argmax(-1, keepdim=True))
    # Tokens generated after padding have small positions, too, but not that of a beginning.
    begins_BT = (before_BT == column_BT - 1) | (position_BT == start_B1)
    return real_BT & (step_BT < 1) & begins_BT


def segment_anchor_columns(lengths: Tensor, total: int, n_gram: int, anchor: str) -> Tensor:
    """Anchors of several sequences laid end to end without padding; int64, shape (total,).

    Args:
        lengths: tokens of each sequence, summing to `total`; int64, shape (number of sequences,).
    """
    ends = lengths.cumsum(0)
    start_S = torch.repeat_interleave(ends - lengths, lengths, output_size=total)
    column_S = torch.arange(total, device=lengths.device)
    first_S = column_S - (column_S - start_S) % n_gram
    if anchor == "first":
        return first_S
    last_S = torch.repeat_interleave(ends - 1, lengths, output_size=total)
    return torch.minimum(first_S + n_gram - 1, last_S)


def share(values_BTE: Tensor, anchor_BT: Tensor) -> Tensor:
    """Give every token the values of its anchor, `out[b, t] = values[b, anchor[b, t]]`; shape (B, T, E)."""
    index_BTE = anchor_BT.unsqueeze(-1).expand(*anchor_BT.shape, values_BTE.shape[-1])
    return values_BTE.gather(-2, index_BTE)


def share_with_past(values_BTE: Tensor, past_BTE: Tensor, anchor_BT: Tensor) -> Tensor:
    """As `share`, where anchors may lie before this call.

    Args:
        values_BTE: values of this call's tokens.
        past_BTE: the value at each token's anchor where that lies in the past; anything elsewhere.
        anchor_BT: anchors relative to this call's first token; negative ones lie in the past.
    """
    return torch.where((anchor_BT < 0).unsqueeze(-1), past_BTE, share(values_BTE, anchor_BT.clamp_min(0)))


def is_anchor(anchor_BT: Tensor) -> Tensor:
    """True at tokens that decide for themselves; shape (B, T)."""
    return anchor_BT == torch.arange(anchor_BT.shape[-1], device=anchor_BT.device)
