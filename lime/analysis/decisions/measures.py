"""Numbers that tell a mixture from a mixture in name: of one layer's routing of many tokens.

Shapes: N tokens, R rows, E experts, K classes, P permutations, O outputs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

PERMUTATIONS = 50
_NOTHING = 1e-12  # of a variance, rounding


@dataclass(frozen=True)
class Tokens:
    """What is known of the tokens that a model read, and of the rows that they belong to.

    Attributes:
        identity_N: number of the token in the vocabulary; all of a picture's are one.
        position_N: place in the row's prompt.
        row_N: the row, 0..R-1.
        task_R: the task of each row, 0..K-1.
        shuffled_PR: the same with the tasks dealt out to the rows at random.
    """

    identity_N: Tensor
    position_N: Tensor
    row_N: Tensor
    task_R: Tensor
    shuffled_PR: Tensor

    @classmethod
    def of(cls, prompts: Sequence[Tensor], tasks: Sequence[str]) -> Tokens:
        """Of the token numbers of each row's prompt, (T,)."""
        task_R = _numbered(torch.tensor([sorted(set(tasks)).index(task) for task in tasks]))
        generator = torch.Generator().manual_seed(0)
        shuffled = [task_R[torch.randperm(len(task_R), generator=generator)] for _ in range(PERMUTATIONS)]
        return cls(
            _numbered(torch.cat(list(prompts)).cpu()),
            torch.cat([torch.arange(len(prompt)) for prompt in prompts]),
            torch.repeat_interleave(torch.arange(len(prompts)), torch.tensor([len(prompt) for prompt in prompts])),
            task_R,
            torch.stack(shuffled),
        )

    def without(self, rows: Sequence[int]) -> tuple[Tokens, Tensor]:
        """Those of all other rows, and which they are, a mask (N,)."""
        keep_R = torch.ones(len(self.task_R), dtype=torch.bool)
        keep_R[list(rows)] = False
        keep_N = keep_R[self.row_N]
        left = Tokens(
            self.identity_N[keep_N],
            self.position_N[keep_N],
            _numbered(self.row_N[keep_N]),
            self.task_R[keep_R],
            self.shuffled_PR[:, keep_R],
        )
        return left, keep_N


MEASURES = {
    "entropy": "entropy, share of log E",
    "deviation": "sd of a probability over tokens",
    "weight_deviation": "sd of a weight over tokens",
    "experts": "experts for a token",
    "busiest": "tokens of the busiest expert",
    "constant": "signal the same for every token",
    "signal_identity": "signal by token identity",
    "signal_position": "signal by position",
    "signal_task": "signal by task",
    "winner_identity": "winner by token identity",
    "winner_position": "winner by position",
    "winner_task": "winner by task",
    "moved": "modulation moved by the routing",
}
"""What `measured` finds, by its name in a table."""


def measured(
    p_NE: Tensor, w_NE: Tensor, tokens: Tokens, modulators: tuple[Tensor, ...] | None = None
) -> dict[str, float]:
    """Of one layer; NaN where nothing varies that could be explained.

    - `entropy`: of a token's probabilities, mean, over log E.
    - `deviation`, `weight_deviation`: standard deviation over tokens of an expert's probability and, after selection,
      of its weight; mean of the experts.
    - `experts`: that carry weight for a token.
    - `busiest`: share of tokens of the expert that wins most, that is, has the largest probability; ties share a token.
    - `constant`: the routing signal is the logits less their mean over the experts, which is all that softmax sees;
      this is the share of its mean square that its mean over tokens has.
    - `signal_…`, `winner_…`: share of the variance over tokens of the signal, and of the winner (an indicator for each
      expert), that lies between the classes of tokens, less what chance gives, over what chance leaves: 0 is chance, 1
      is all. Chance of identity and position: (K - 1) / (N - 1), tokens exchanged; of the task: rows exchanged whole.
    - `moved`: root mean square, over tokens and outputs, of what the weights' deviation from their mean changes in the
      modulation `P + gamma p_s`, over that of its mean.

    Args:
        p_NE: probabilities before selection.
        w_NE: weights after it.
        modulators: experts (E, O), and shared modulator (O,) with its gamma where there is one; not of a mixture of
            PEFT modules.
    """
    p_NE, w_NE = p_NE.double(), w_NE.double()
    E = p_NE.shape[1]
    log_NE = p_NE.clamp_min(torch.finfo(torch.double).tiny).log()
    signal_NE = log_NE - log_NE.mean(1, keepdim=True)
    wins_NE = (p_NE == p_NE.amax(1, keepdim=True)).double()
    wins_NE /= wins_NE.sum(1, keepdim=True)
    square = float(signal_NE.square().sum(1).mean())
    return {
        "entropy": float(torch.special.entr(p_NE).sum(1).mean()) / math.log(E) if E > 1 else math.nan,
        "deviation": float(p_NE.std(0).mean()),
        "weight_deviation": float(w_NE.std(0).mean()),
        "experts": float((w_NE > 0).sum(1).double().mean()),
        "busiest": float(wins_NE.mean(0).max()),
        "constant": float(signal_NE.mean(0).square().sum()) / square if square > _NOTHING else math.nan,
        **{f"signal_{name}": share for name, share in explained(signal_NE, tokens).items()},
        **{f"winner_{name}": share for name, share in explained(wins_NE, tokens).items()},
        "moved": math.nan if modulators is None else _moved(w_NE, *(one.double() for one in modulators)),
    }


def explained(values_NE: Tensor, tokens: Tokens) -> dict[str, float]:
    """Share of the variance over tokens between tokens of one identity, position and task, corrected for chance."""
    N, E = values_NE.shape
    centred_NE = values_NE - values_NE.mean(0)
    total = float(centred_NE.square().sum())
    if total <= _NOTHING * N:
        return dict.fromkeys(("identity", "position", "task"), math.nan)
    found = {}
    for name, class_N in (("identity", tokens.identity_N), ("position", tokens.position_N)):
        sums_KE = values_NE.new_zeros(int(class_N.max()) + 1, E).index_add_(0, class_N, centred_NE)
        counts_K = torch.bincount(class_N, minlength=len(sums_KE))
        between = float((sums_KE.square().sum(1) / counts_K.clamp_min(1)).sum()) / total
        found[name] = _beyond(between, (int((counts_K > 0).sum()) - 1) / (N - 1))
    R = len(tokens.task_R)
    sums_RE = values_NE.new_zeros(R, E).index_add_(0, tokens.row_N, centred_NE)
    count_R = torch.bincount(tokens.row_N, minlength=R).double()
    between_P = _between_tasks(sums_RE, count_R, torch.cat([tokens.task_R[None], tokens.shuffled_PR])) / total
    found["task"] = _beyond(float(between_P[0]), float(between_P[1:].mean()))
    return found


def _between_tasks(sums_RE: Tensor, count_R: Tensor, task_PR: Tensor) -> Tensor:
    """Sum of squares between tasks, (P,), for each way to deal tasks out to rows."""
    K = int(task_PR.max()) + 1
    index_PRE = task_PR[..., None].expand(-1, -1, sums_RE.shape[1])
    sums_PKE = sums_RE.new_zeros(len(task_PR), K, sums_RE.shape[1])
    sums_PKE.scatter_add_(1, index_PRE, sums_RE.expand(len(task_PR), -1, -1))
    count_PK = count_R.new_zeros(len(task_PR), K).scatter_add_(1, task_PR, count_R.expand(len(task_PR), -1))
    return (sums_PKE.square().sum(2) / count_PK.clamp_min(1)).sum(1)


def _beyond(share: float, chance: float) -> float:
    return (share - chance) / (1 - chance) if chance < 1 else math.nan


def _moved(w_NE: Tensor, experts_EO: Tensor, shared_O: Tensor | None = None, gamma: Tensor | None = None) -> float:
    mean_O = w_NE.mean(0) @ experts_EO
    if shared_O is not None and gamma is not None:
        mean_O = mean_O + gamma * shared_O
    moved_EE = torch.cov(w_NE.t(), correction=0).reshape(len(experts_EO), -1) @ (experts_EO @ experts_EO.t())
    return math.sqrt(max(float(moved_EE.trace()), 0.0) / float(mean_O.square().sum()))


def _numbered(values: Tensor) -> Tensor:
    """The same classes as 0..K-1."""
    return values.unique(return_inverse=True)[1]
