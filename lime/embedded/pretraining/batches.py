"""Batches for the pretraining of the embedded backbones: tokenised conversations, bucketed by length."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor
from transformers import Qwen2Tokenizer

from lime.data.collate import IGNORED
from lime.embedded.pretraining.architecture import render
from lime.embedded.pretraining.text_corpus import text_dialogue

Encoded = tuple[list[int], list[int]]  # token ids, labels (IGNORED where nothing is learned)


class Encoder:
    """Conversations of one backbone as token ids, with labels on the answers and their end tokens only."""

    def __init__(self, name: str, tokenizer: Qwen2Tokenizer) -> None:
        self.name, self.tokenizer = name, tokenizer

    def __call__(self, turns: list[tuple[str, str]], kind: str | None = None) -> Encoded:
        ids: list[int] = []
        labels: list[int] = []
        for text, learned in render(self.name, turns, kind):
            piece = self.tokenizer(text, add_special_tokens=False).input_ids
            ids += piece
            labels += piece if learned else [IGNORED] * len(piece)
        return ids, labels


def pad(rows: list[Encoded], pad_id: int) -> tuple[Tensor, Tensor]:
    """Right-padded (B, T) token ids and labels. The mask is not needed: attention is causal and padding comes last."""
    length = max(len(ids) for ids, _ in rows)
    tokens = torch.full((len(rows), length), pad_id)
    labels = torch.full((len(rows), length), IGNORED)
    for row, (ids, marks) in enumerate(rows):
        tokens[row, : len(ids)] = torch.tensor(ids)
        labels[row, : len(ids)] = torch.tensor(marks)
    return tokens, labels


def bucketed(
    count: Callable[[], int], length: Callable[[int], int], batch_size: int, rng: np.random.Generator, span: int = 16
) -> Iterator[np.ndarray]:
    """Endless index batches of like lengths: shuffle, cut into chunks of `span` batches, sort each by length."""
    while True:
        order = rng.permutation(count())
        for start in range(0, len(order) - batch_size * span + 1, batch_size * span):
            chunk = order[start : start + batch_size * span]
            chunk = chunk[np.argsort([length(i) for i in chunk], kind="stable")].reshape(span, batch_size)
            yield from (chunk[i] for i in rng.permutation(span))


def text_batches(encoders: list[Encoder], batch_size: int, seed: int, span: int = 16) -> Iterator[tuple[str, object]]:
    """Fresh text dialogues without end; each in the chat format of one of the encoders."""
    rng = np.random.default_rng(seed)
    pad_id = encoders[0].tokenizer.pad_token_id
    while True:
        rows = [encoders[int(rng.integers(len(encoders)))](text_dialogue(rng)) for _ in range(batch_size * span)]
        rows.sort(key=lambda row: len(row[0]))
        for i in rng.permutation(span):
            yield "text", pad(rows[i * batch_size : (i + 1) * batch_size], pad_id)


def induction_batches(vocabulary: int, batch_size: int, seed: int) -> Iterator[tuple[str, object]]:
    """Random token sequences, said twice, the second time learned: copying in its densest form."""
    rng = np.random.default_rng([seed, 9])
    while True:
        length = int(rng.integers(8, 33))
        first = torch.from_numpy(rng.integers(0, vocabulary, (batch_size, length)))
        hidden = torch.full_like(first, IGNORED)
        yield "induction", (torch.cat([first, first], 1), torch.cat([hidden, first], 1))
