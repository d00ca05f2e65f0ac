"""The names of the LiME page, what they mean here, and contradictions between them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from lime.tuner import PRESETS, LimeSettings, preset_settings
from lime.tuner.layers.linear import LimeLinear
from lime.tuner.routing.call import TowerCall
from lime.tuner.routing.state import RoutingState
from tests.ways import way


def test_the_page_s_own_call() -> None:
    got = preset_settings(
        targets=["q_proj", "v_proj"], num_experts=4, rank=2, alpha=8.0, use_shared_LiME=True, n_gram=1,
        jitter_noise=0.1, temperature=0.5, gamma_routing=0.7, auto_topk=True, auto_topk_threshold=0.5,
    )  # fmt: skip
    assert got == LimeSettings(target_modules=["q_proj", "v_proj"], lora_alpha=8.0, auto_topk_threshold=0.5)
    assert preset_settings(auto_topk=False, top_k=3) == LimeSettings(selection="topk", top_k=3)
    assert preset_settings(rank=7, use_shared_LiME=False) == LimeSettings(r=7, shared_modulator=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 2, "r": 4}, "rank and r both set r, to 2 and 4"),
        ({"auto_topk": True, "selection": "topk"}, "auto_topk and selection both set selection, to 'auto' and 'topk'"),
        ({"auto_topk": True, "top_k": 1}, "top_k: 1 has no effect"),
        ({"top_k": 2}, "top_k: 2 has no effect with selection 'auto'"),
        ({"auto_topk": False, "auto_topk_threshold": 0.5}, "auto_topk_threshold: 0.5 has no effect"),
        ({"auto_topk": 1}, "auto_topk: expected true or false"),
        ({"rep_mode": "token"}, "rep_mode: not an option here: routing is always by token"),
        ({"ranks": 2}, "unknown LiME option 'ranks'"),
    ],
)
def test_contradictions(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        preset_settings(**options)


def test_without_windows_a_mask_changes_no_real_token_of_the_authors_preset() -> None:
    """So that what their scripts leave out, the mask, changes the statistics alone."""
    torch.manual_seed(0)
    layer = LimeLinear(nn.Linear(16, 24).requires_grad_(False), "layer", "", RoutingState())
    layer.update_layer("default", preset_settings("authors", jitter_noise=0.0), init_weights=False)
    layer.set_adapter("default")
    x, mask = torch.randn(2, 6, 16), torch.tensor([[1, 1, 1, 1, 0, 0], [0, 0, 1, 1, 1, 1]]).bool()
    for path in ("auto", "torch", "literal"):
        outs, loads = [], []
        for given in (mask, None):
            with way(path), layer.routing_state.recording() as recorder:
                call = TowerCall("", mask_BT=given, mask_BS=given, recorder=recorder)
                with layer.routing_state.restored({"": call}):
                    outs.append(layer(x))
            loads.append(recorder.statistics()["layer:default"].mean_probability)
        torch.testing.assert_close(outs[0][mask], outs[1][mask])
        assert not torch.allclose(outs[0][~mask], outs[1][~mask])
        assert not torch.allclose(loads[0], loads[1])


def test_options_may_switch_off_what_a_preset_sets() -> None:
    for preset in ("paper", "authors"):
        got = preset_settings(preset, n_gram=1)
        assert (got.n_gram, got.window_anchor) == (1, "first")
        assert got.routing_norm == PRESETS[preset]["routing_norm"]
    assert not preset_settings("authors", selection="dense").soft
    assert preset_settings("authors", n_gram=3).window_anchor == "last"
    assert preset_settings("authors").auto_topk_threshold == 0.5
    with pytest.raises(ValueError, match="window_anchor: 'last' has no effect"):
        preset_settings("paper", n_gram=1, window_anchor="last")
