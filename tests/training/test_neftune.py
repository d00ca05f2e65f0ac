"""NEFTune: noise of the right size on the text's embeddings alone, in training alone, the same in a resumed run."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lime.config.check import ConfigError, build
from lime.config.schema import TrainConfig
from lime.jobs.train import train
from lime.training.module import AdaptationModule
from lime.training.neftune import noisy_embeddings
from tests.properties.steps import module_of, training_batch
from tests.training.parts import config, values
from tests.tuner import small_models as small

ALPHA = 5.0


def embedded(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    """What the language model is given: text embeddings with the images in their places."""
    seen = []
    handle = model.get_decoder().register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["inputs_embeds"].detach().clone()), with_kwargs=True
    )
    with torch.no_grad():
        model(**inputs)
    handle.remove()
    return seen[0]


@pytest.mark.parametrize("family", small.FAMILIES)
def test_noise_is_of_the_size_of_each_rows_own_text_and_on_nothing_else(family: str) -> None:
    model = small.build(family)
    rows = [small.row(family, 40, 1), small.row(family, 12, 2, with_image=True), small.row(family, 9, 3)]
    inputs = small.batch(family, rows)
    clean = embedded(model, inputs)
    with noisy_embeddings(model, inputs, ALPHA):
        noise = embedded(model, inputs) - clean
    assert torch.equal(embedded(model, inputs), clean), "off outside"
    text = inputs["attention_mask"].bool() & (inputs["input_ids"] != small.IMAGE)
    assert not noise[~text].any(), "padding and images stay as they are"
    assert (text & (inputs["input_ids"] < small.WORDS)).sum() < text.sum() or family != "qwen2_vl"
    for row, at in zip(noise, text, strict=True):
        bound = ALPHA / math.sqrt(int(at.sum()) * row.shape[-1])
        size = row[at].abs()
        assert size.max() <= bound * 1.001
        assert float(size.mean()) == pytest.approx(bound / 2, rel=0.15), "uniform between the bounds"


def test_a_rows_noise_does_not_shrink_with_its_neighbours() -> None:
    """Unlike the noise of transformers' own hook, which counts the padded width."""
    model, family = small.build("llava_onevision"), "llava_onevision"
    short = small.row(family, 6, 1)
    alone, beside = small.batch(family, [short]), small.batch(family, [short, small.row(family, 60, 2)])
    sizes = []
    for inputs in (alone, beside):
        torch.manual_seed(0)
        with noisy_embeddings(model, inputs, ALPHA):
            noisy = embedded(model, inputs)[0, :6]
        sizes.append(float((noisy - embedded(model, inputs)[0, :6]).abs().max()))
    assert sizes[0] == pytest.approx(sizes[1], rel=0.1)


def test_on_in_the_training_loss_and_off_in_validation() -> None:
    family = "llava_onevision"
    model = small.apply_random(small.build(family), jitter_noise=0.0)
    module = module_of(AdaptationModule, model, 0.0, None)
    batch = training_batch(family, [small.row(family, 9, 1), small.row(family, 5, 2)], [2, 3])
    moved = module.on_before_batch_transfer(batch, 0)
    plain = module.loss(moved).task
    module.neftune_alpha = ALPHA
    with torch.no_grad():
        torch.manual_seed(0)
        first, second = module.loss(moved).task, module.loss(moved).task
        torch.manual_seed(0)
        assert torch.equal(module.loss(moved).task, first), "from the seed"
        assert not torch.equal(first, second)
        module.validation_step(moved, 0)
        assert module._val_sums[0] == float(plain)


def test_a_run_resumes_bit_for_bit(tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "callbacks__checkpoint": True, "callbacks__checkpoint_every_n_steps": 2, "callbacks__keep_checkpoints": 9,
        "evaluation__mode": "none", "trainer__max_steps": 4, "trainer__neftune_alpha": ALPHA,
    }  # fmt: skip
    train(config("qwen2_vl", **options), tmp_path / "whole")
    middle = str(tmp_path / "whole" / "checkpoints" / "step-2.ckpt")
    train(config("qwen2_vl", **options, ckpt_path=middle), tmp_path / "resumed")
    train(config("qwen2_vl", **{**options, "trainer__neftune_alpha": None}), tmp_path / "without")
    whole, resumed, without = (
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for name in ("whole", "resumed", "without")
    )
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    assert any(not torch.equal(whole[key], without[key]) for key in whole)


def test_a_size_that_is_none_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"trainer\.neftune_alpha: expected a number above 0"):
        build(TrainConfig, values(trainer__neftune_alpha=0.0))
