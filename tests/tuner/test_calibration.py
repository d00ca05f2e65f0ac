"""Routing that reads what frozen outputs are like on training rows: what it keeps of them, and when it refuses."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import lime
from lime.tuner.layers.linear import LimeLinear
from lime.tuner.layers.wrapped import LimeWrapped
from tests.tuner import small_models as small

FAMILY = "llava_onevision"
STANDARD = {"routing_norm": "standard", "feature_slice": "variance", "scope": "both"}


def rows() -> list[dict[str, Any]]:
    return [small.row(FAMILY, 9, 1, with_image=True), small.row(FAMILY, 14, 2), small.row(FAMILY, 5, 3)]


def frozen_outputs(model: Any, name: str) -> Tensor:
    """Frozen outputs of one layer on each row by itself, (N, O)."""
    layer, found = model.get_submodule(name), []
    handle = layer.get_base_layer().register_forward_hook(lambda _, args, z: found.append(z.flatten(0, -2)))
    with torch.no_grad(), model.disable_adapter():
        for one in rows():
            model(**small.batch(FAMILY, [one]))
    handle.remove()
    return torch.cat(found).double()


@pytest.mark.parametrize("options", [{}, {"peft": "any", "base": "vera", "base_options": {"r": 2}}], ids=str)
@pytest.mark.parametrize("norm", ["standard", "scaled"])
def test_it_keeps_mean_and_scale_of_the_features_of_largest_variance(norm: str, options: dict[str, Any]) -> None:
    """Over real tokens, however the rows are cut into batches and padded."""
    for batches in ([rows()], [rows()[:1], rows()[1:]]):
        model, _ = lime.apply(small.build(FAMILY), **{**STANDARD, "routing_norm": norm, **options})
        model.train()
        model.get_base_model().model.vision_tower.eval()
        lime.tuner.calibrate(model, [small.batch(FAMILY, part, "left", width=40) for part in batches])
        assert model.training, "every module is in its mode again"
        assert not model.get_base_model().model.vision_tower.training
        layers = [(name, m) for name, m in model.named_modules() if isinstance(m, LimeLinear | LimeWrapped)]
        assert len(layers) == 16
        for name, layer in layers:
            router: Any = layer.lime_router["default"]
            z_NO = frozen_outputs(model.eval(), name)
            assert set(router.features.tolist()) == set(z_NO.var(0).topk(4).indices.tolist())
            picked_NE = z_NO[:, router.features]
            mean_E, scale_E = picked_NE.mean(0), picked_NE.std(0, correction=0)
            if norm == "scaled":
                mean_E, scale_E = torch.zeros(4), picked_NE.square().mean(0).sqrt()
            torch.testing.assert_close(router.shift.double(), mean_E.double(), atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(router.scale.double(), scale_E, atol=1e-5, rtol=1e-5)


def test_the_frozen_signal_is_routed_by_it_and_the_update_as_ever() -> None:
    model = small.apply_random(small.build(FAMILY), **STANDARD)
    lime.tuner.calibrate(model, [small.batch(FAMILY, rows())])
    router: Any = small.lime_layers(model)[0].lime_router["default"]
    z, zhat = torch.randn(2, 3, 5, 4)
    expected = 0.3 * (z - router.shift) / router.scale + 0.7 * zhat / zhat.abs().amax(-1, keepdim=True)
    torch.testing.assert_close(router.zero_probabilities(z, zhat, z, None, None), (expected / 0.5).softmax(-1))


def test_a_model_that_has_seen_no_rows_refuses_to_route(tmp_path: Path) -> None:
    base = small.build(FAMILY)
    model, _ = lime.apply(copy.deepcopy(base), **STANDARD)
    inputs = small.batch(FAMILY, rows())
    with pytest.raises(RuntimeError, match=r"feature_slice=variance, routing_norm=standard .*lime\.tuner\.calibrate"):
        model(**inputs)
    with pytest.raises(ValueError, match="no token of the calibration rows reaches it"):
        lime.tuner.calibrate(model, [])
    lime.tuner.calibrate(model, [inputs])
    model.save_pretrained(tmp_path)
    model(**inputs)
    loaded, _ = lime.load(base, tmp_path)
    loaded(**inputs)

    def never() -> Any:
        raise AssertionError("rows were drawn again")
        yield

    for each in (model, loaded, lime.apply(small.build(FAMILY))[0]):
        lime.tuner.calibrate(each, never())


def test_rank_modulation_needs_a_rank() -> None:
    with pytest.raises(ValueError, match=r"rank_modulation: True has no effect without a type with a rank"):
        lime.apply(small.build(FAMILY), peft="any", rank_modulation=True)
