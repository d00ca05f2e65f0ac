"""A run in lmms-eval, where that is installed, and an adapted model in a pipeline of transformers."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path

import numpy as np
import pytest
import transformers
from PIL import Image

import lime
from lime.embedded.benchmark.scenes_image import digit
from lime.models.loading import load_backbone
from lime.processors.config import EMBEDDED, ModelConfig

ROOT = Path(__file__).parents[2]
ADAPTER = ROOT / "examples" / "adapter"
DIGIT = "Which digit is in the image? Answer with a number."


@pytest.fixture(scope="module")
def seven() -> Image.Image:
    return Image.fromarray(digit(np.random.default_rng(1), value=7)[0])


@pytest.mark.slow
@pytest.mark.parametrize("name", EMBEDDED)
def test_a_pipeline_answers_with_an_adapted_model(name: str, seven: Image.Image) -> None:
    backbone = load_backbone(ModelConfig(name, family=EMBEDDED[name]))
    if name == "tiny_llava_onevision":
        model, _ = lime.load(backbone.model, ADAPTER)
    else:
        model, _ = lime.apply(backbone.model, num_experts=4, r=2)
    pipe = transformers.pipeline("image-text-to-text", model=model, processor=backbone.processor)
    content = [{"type": "image", "image": seven}, {"type": "text", "text": DIGIT}]
    chat = [{"role": "user", "content": content}]
    options = {"generate_kwargs": {"max_new_tokens": 5, "do_sample": False}, "return_full_text": False}
    answers = [answer["generated_text"] for answer in (*pipe(text=chat, **options), *pipe(text=chat, **options))]
    assert answers[0] == answers[1]
    if name == "tiny_llava_onevision":
        with model.disable_adapter():
            (frozen,) = pipe(text=chat, **options)
        assert (answers[0], frozen["generated_text"]) == ("7", "A")


def test_a_run_answers_in_lmms_eval(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, seven: Image.Image) -> None:
    """Through its own registry and requests: a picture, a clip's file, a text."""
    api = pytest.importorskip("lmms_eval.api.model", reason="lmms-eval is not installed", exc_type=ImportError)
    from lmms_eval.api.instance import Instance
    from lmms_eval.models import get_model

    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    importlib.import_module("lmms_eval_lime")
    kind = get_model("lime")
    assert issubclass(kind, api.lmms)
    assert not inspect.isabstract(kind)
    model = kind.create_from_arg_string(
        f"run={ADAPTER},model=tiny_llava_onevision", {"batch_size": 1, "max_batch_size": None, "device": None}
    )
    text = "Choose the best option.\nanna wants to open the door and will use the\n\nOptions:\nA. key\nB. spoon"
    docs = [{"see": [seven], "ask": DIGIT}, {"see": [], "ask": text}, {"see": [seven, seven], "ask": DIGIT}]
    model.task_dict = {"own": {"test": docs}}
    about = {"task": "own", "repeats": 1}
    requests = [
        Instance(
            "generate_until", (doc["ask"], {"max_new_tokens": 5}, lambda doc: doc["see"], at, "own", "test"), at,
            {**about, "doc_id": at},
        )
        for at, doc in enumerate(docs)
    ]  # fmt: skip
    assert model.generate_until(requests[:2]) == ["7", "A"]
    with pytest.raises(ValueError, match="own, row 2: 2 pictures; expected one at most"):
        model.generate_until(requests[2:])
