"""A row's output depends on that row alone, and a token's on the tokens up to it, in every causal mode."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.tuner import small_models as small

MODES: dict[str, dict[str, Any]] = {
    "default": {},
    "token norm": {"routing_norm": "token"},
    "soft": {"soft": True},
    "top-k, 3-grams": {"selection": "topk", "n_gram": 3},
    "dense, central": {"selection": "dense", "feature_slice": "central", "n_gram": 2},
    "random features": {"feature_slice": "random", "max_experts": 2},
    "learned router, 4-grams": {"router": "learned", "n_gram": 4},
}
families = pytest.mark.parametrize("family", small.FAMILIES)
modes = pytest.mark.parametrize("options", MODES.values(), ids=MODES.keys())


@families
@modes
def test_rows_do_not_depend_on_neighbours_or_padding(family: str, options: dict[str, Any]) -> None:
    model = small.apply_random(small.build(family), scope="both", **options)
    rows = [
        small.row(family, 9, 1, with_image=True),
        small.row(family, 14, 2),
        small.row(family, 5, 3, with_image=True),
    ]
    together = small.logits(model, small.batch(family, rows, "right"))
    left = small.logits(model, small.batch(family, rows, "left", width=24))
    for i, one in enumerate(rows):
        (alone,) = small.logits(model, small.batch(family, [one]))
        torch.testing.assert_close(together[i], alone, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(left[i], alone, atol=1e-4, rtol=1e-4)


@families
@modes
def test_later_tokens_change_nothing_before(family: str, options: dict[str, Any]) -> None:
    model = small.apply_random(small.build(family), **options)
    one = small.row(family, 13, 1)
    (before,) = small.logits(model, small.batch(family, [one]))
    for t in range(3, 13, 3):
        changed = {**one, "ids": one["ids"].clone()}
        changed["ids"][t] = (changed["ids"][t] + 17) % small.WORDS + 1
        (after,) = small.logits(model, small.batch(family, [changed]))
        torch.testing.assert_close(after[:t], before[:t], atol=1e-5, rtol=1e-5)
        assert not torch.allclose(after[t:], before[t:], atol=1e-3), "the change must be seen somewhere"


@families
def test_tensor_norm_depends_on_neighbours(family: str) -> None:
    """As documented: the authors' norm is over the whole batch."""
    model = small.apply_random(small.build(family), routing_norm="tensor", selection="dense")
    rows = [small.row(family, 9, 1), small.row(family, 14, 2)]
    together = small.logits(model, small.batch(family, rows))
    (alone,) = small.logits(model, small.batch(family, rows[:1]))
    assert not torch.allclose(together[0], alone, atol=1e-3)


@families
def test_last_anchor_is_not_causal(family: str) -> None:
    """As documented: with `last`, a window's earlier tokens depend on its last one, and on none after it."""
    model = small.apply_random(small.build(family), n_gram=3, window_anchor="last", selection="dense")
    one = small.row(family, 12, 1)
    (before,) = small.logits(model, small.batch(family, [one]))
    changed = {**one, "ids": one["ids"].clone()}
    changed["ids"][5] = (changed["ids"][5] + 17) % small.WORDS + 1  # the last token of the window 3, 4, 5
    (after,) = small.logits(model, small.batch(family, [changed]))
    assert not torch.allclose(after[3:5], before[3:5], atol=1e-3)
    torch.testing.assert_close(after[:3], before[:3], atol=1e-5, rtol=1e-5)


@families
def test_padding_stays_frozen_and_uncounted(family: str) -> None:
    from lime.tuner import record

    model = small.apply_random(small.build(family))
    inputs = small.batch(family, [small.row(family, 6, 1), small.row(family, 11, 2)], "left")
    padding = ~inputs["attention_mask"].bool()
    seen = []
    for layer in small.lime_layers(model):
        layer.base_layer.register_forward_hook(lambda _, __, out: seen.append(out))
        layer.register_forward_hook(lambda _, __, out: seen.append(out))
    with record(model) as recorder:
        small.logits(model, inputs)
    for frozen, adapted in zip(seen[::2], seen[1::2], strict=True):
        assert torch.equal(frozen[padding], adapted[padding])
        assert not torch.equal(frozen[~padding], adapted[~padding])
    for statistics in recorder.statistics().values():
        assert int(statistics.token_count) == 17
        torch.testing.assert_close(statistics.probability_sum.sum(), torch.tensor(17.0))
