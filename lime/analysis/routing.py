"""What rows were routed to: usage of the experts, entropy, and how many of them a layer really uses.

Shapes: R rows, E experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special


@dataclass(frozen=True)
class RoutedRows:
    """Routing of R rows in one layer, each a mean over the row's tokens.

    Attributes:
        probability_RE: routing probabilities before selection.
        active_RE: share of tokens in whose modulation an expert carries weight.
        largest_RE: share of tokens whose largest probability is the expert's; rows sum to 1.
        entropy_R: entropy of the probabilities in nats.
    """

    probability_RE: np.ndarray
    active_RE: np.ndarray
    largest_RE: np.ndarray
    entropy_R: np.ndarray


@dataclass(frozen=True)
class Usage:
    """Means over rows, every row alike whatever its length.

    Attributes:
        usage: mean routing probability of each expert; sums to 1.
        entropy: mean entropy of a token's probabilities, nats; at most log E.
        experts_per_token: experts that carry weight for a token.
        largest: share of tokens whose largest probability is the expert's; sums to 1.
        busiest: the largest of these shares: near 1 the layer gives one expert every token, whatever `usage` says.
        experts_realised: exponential of the entropy of `largest`, 1 to E: how many experts that win as many tokens each
            would give it.
    """

    rows: int
    usage: tuple[float, ...]
    entropy: float
    experts_per_token: float
    largest: tuple[float, ...]
    busiest: float
    experts_realised: float


def usage_of(routed: RoutedRows, chosen_R: np.ndarray | None = None) -> Usage:
    """Usage over all rows or over those that are chosen, a mask (R,).

    Raises:
        ValueError: no row is chosen.
    """
    chosen = slice(None) if chosen_R is None else chosen_R
    probability_RE = routed.probability_RE[chosen]
    if not len(probability_RE):
        raise ValueError("no row to take the routing of")
    largest_E = routed.largest_RE[chosen].mean(axis=0)
    return Usage(
        rows=len(probability_RE),
        usage=tuple(probability_RE.mean(axis=0).tolist()),
        entropy=float(routed.entropy_R[chosen].mean()),
        experts_per_token=float(routed.active_RE[chosen].sum(axis=1).mean()),
        largest=tuple(largest_E.tolist()),
        busiest=float(largest_E.max()),
        experts_realised=float(np.exp(special.entr(largest_E).sum())),
    )


def usage_by_group(routed: RoutedRows, groups: Sequence[str]) -> dict[str, Usage]:
    """`usage_of` the rows of each group, in the order in which the groups first come.

    Raises:
        ValueError: another number of groups than of rows.
    """
    names_R = np.asarray(groups)
    if len(names_R) != len(routed.probability_RE):
        raise ValueError(f"expected a group for each of {len(routed.probability_RE)} rows, got {len(names_R)}")
    return {name: usage_of(routed, names_R == name) for name in dict.fromkeys(groups)}
