"""Real architectures at their true widths, a block or two deep: loaded, adapted, trained, evaluated, saved, reloaded.

The four published ones, and by model=hf Qwen2.5-VL and SmolVLM.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lime.config.check import build
from lime.config.schema import EvalConfig, method_of
from lime.jobs.evaluate import evaluate
from lime.jobs.train import train
from lime.models.architectures import ARCHITECTURES
from lime.models.loading import load_backbone
from lime.models.random_checkpoint import write_random_checkpoint
from lime.processors.config import FAMILIES, ImageConfig, ModelConfig, VideoConfig
from tests.data import tiny
from tests.training.parts import config, metrics

TYPES = ("lora", "lora_fa", "dora", "slicefine", "prompt_tuning", "any")
BY_WIDTH = sorted(
    (*(name for name, one in ARCHITECTURES.items() if one.family in FAMILIES), "qwen2_5vl_3b", "smolvlm_256m"),
    key=lambda name: ARCHITECTURES[name].config()["text_config"]["hidden_size"],
)
IMAGES = {"qwen2_5_vl": {"max_pixels": 384 * 384}, "idefics3": {"max_tiles": 1}}
"""Of those by model=hf, in place of the published budget."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five training rows, three of text, one image, one clip; a test row of each."""
    train_rows = [tiny.row("text", "", f"is {n} good?", "yes") for n in range(3)]
    train_rows += [tiny.row("image", "media/a.png", "what?", "red"), tiny.row("video", "media/a.mp4", "what?", "A")]
    tests = {
        "glue_test_sst2": [tiny.row("text", "", "is it good?", "positive")],
        "image_test_caltech101": [tiny.row("image", "media/b.png", "what?", "red")],
        "video_test_action_sequence": [tiny.row("video", "media/b.mp4", "what?", "B")],
    }
    return tiny.write_root(tmp_path_factory.mktemp("real"), {"train": train_rows, **tests})


@pytest.fixture(scope="module", params=BY_WIDTH)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    folder = tmp_path_factory.mktemp("checkpoint") / "model"
    wide = ARCHITECTURES[request.param].config()["text_config"]["hidden_size"] > 2000
    return request.param, write_random_checkpoint(request.param, folder, layers=1 if wide else 2)


@pytest.mark.slow
@pytest.mark.parametrize("peft", TYPES)
def test_every_type_on_every_architecture(checkpoint: tuple[str, Path], peft: str, root: Path, tmp_path: Path) -> None:
    """In bfloat16 with float32 adapters: five steps from a folder of weights, an evaluation, and the same answers from
    the saved adapter."""
    name, folder = checkpoint
    family = ARCHITECTURES[name].family
    model: dict[str, object] = {"name": name, "path": str(folder), "dtype": "bfloat16", "video": {"num_frames": 2}}
    model |= {"family": "hf", "image": IMAGES[family]} if family in IMAGES else {"budget": "published"}
    changes = {
        "method": method_of(peft, enabled=True).name, "peft__type": peft, "model": {"family": family, **model},
        "data__root": str(root), "trainer__batch_size": 1,
    }  # fmt: skip
    if peft == "any":
        changes["peft__base"] = "LORA"
    if peft != "prompt_tuning":
        changes["peft__scope"] = "both"
    run = tmp_path / "run"
    settings = config(**changes, trainer__max_steps=5, evaluation__max_new_tokens=2, evaluation__baseline_frozen=False)
    train(settings, run)
    losses = [float(row["loss/task"]) for row in metrics(run)]
    assert len(losses) == 5
    assert all(0 < loss < 100 for loss in losses)
    tensors = load_file(run / "adapter" / "adapter_model.safetensors")
    assert {t.dtype for t in tensors.values() if t.is_floating_point()} == {torch.float32}
    again = {"data": {"name": "mmt47", "root": str(root)}, "adapter": str(run / "adapter")}
    evaluate(build(EvalConfig, again), tmp_path / "again")
    first, second = ((folder / "predictions.jsonl").read_text() for folder in (run, tmp_path / "again"))
    assert first == second
    assert len(first.splitlines()) == 3


@pytest.mark.parametrize("name", ["llava_onevision_0_5b", "qwen2vl_2b"])
def test_budgets_reach_the_processor(name: str, tmp_path: Path) -> None:
    """The published one: one tile, or 384 x 384 pixels, and 8 frames; and bounds on the number of visual tokens."""
    path = str(write_random_checkpoint(name, tmp_path / "model", layers=1))
    family = ARCHITECTURES[name].family

    def tokens(**options: object) -> tuple[int, int]:
        backbone = load_backbone(ModelConfig(name=name, family=family, path=path, **options))  # type: ignore[arg-type]
        sizes = {"image_sizes": [(800, 1200)], "video_sizes": [(8, 800, 1200)]}
        counts = backbone.processor._get_num_multimodal_tokens(**sizes)  # type: ignore[attr-defined]
        return int(counts.num_image_tokens[0]), int(counts.num_video_tokens[0])

    published, free = tokens(budget="published"), tokens()
    # LLaVA: a base view of 27 x 27, a tile cropped to 19 rows of 27 + 1; 8 frames of 14 x 14. Qwen: 11 x 16 of 28 x 28.
    assert published == ((1261, 1569) if family == "llava_onevision" else (176, 4 * 176))
    assert free[0] > published[0]
    few = tokens(image=ImageConfig(max_tokens=1500 if family == "llava_onevision" else 100))[0]
    assert few <= (1500 if family == "llava_onevision" else 100)
    if family == "llava_onevision":
        with pytest.raises(ValueError, match=r"model\.image\.max_tokens: an image takes at least"):
            tokens(image=ImageConfig(max_tokens=700))
        with pytest.raises(ValueError, match=r"model\.video\.max_tokens: 8 frames take 1569 tokens"):
            tokens(video=VideoConfig(max_tokens=1000))
    else:
        assert tokens(video=VideoConfig(max_tokens=200))[1] <= 200


def test_an_unquantised_machine_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lime.models.loading.importlib.util.find_spec", lambda name: None)
    settings = ModelConfig(family="qwen2_vl", path=str(tiny.checkpoint("qwen2_vl")), name="x", quantization="4bit")
    with pytest.raises(ValueError, match=r"needs bitsandbytes.*pip install 'lime-moe\[quantised\]'"):
        load_backbone(settings)


def test_eight_bit_adamw_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lime.training.optimizer.importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"optim\.eight_bit: needs bitsandbytes"):
        train(config(trainer__max_steps=1, optim__eight_bit=True, evaluation__mode="none"), tmp_path)


def test_evaluation_spreads_a_model_over_devices(tmp_path: Path) -> None:
    """By device_map; and an adapter's run remembers the backbone it belongs to."""
    train(config(trainer__max_steps=1), tmp_path / "run")
    model = {**config().model.__dict__, "device_map": "auto"}
    model = {key: value for key, value in model.items() if key in ("name", "family", "path", "dtype", "device_map")}
    settings = {"data": {"name": "mmt47", "root": config().data.root}, "model": model}
    evaluate(
        build(EvalConfig, {**settings, "adapter": str(tmp_path / "run" / "adapter")}),
        tmp_path / "again",
        ["model.device_map=auto"],
    )
    first, second = ((tmp_path / name / "predictions.jsonl").read_text() for name in ("run", "again"))
    assert [json.loads(line)["raw"] for line in first.splitlines()] == [
        json.loads(line)["raw"] for line in second.splitlines()
    ]
