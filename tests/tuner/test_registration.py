"""After `import lime`, the peft library knows LiME, whichever of the two is imported first."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import lime
from tests.tuner import small_models as small

KNOWN = "from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING as known; assert 'LIME' in known"
IMPORTS = {
    "lime first, and cheaply": "import sys, lime; assert not {'torch', 'peft'} & set(sys.modules); import peft",
    "peft first": "import peft, lime",
    "by way of transformers": "import lime; from transformers import AutoModel; from peft import AutoPeftModel",
    "on request": "import lime; lime.tuner.register(); lime.tuner.register()",
    "a module of the tuner first": "import lime.tuner.layers.wrapped; import wave",
    "the configuration first": "import lime.tuner.config; import wave",
    "while peft is imported already": "import peft.tuners.lora; import lime.tuner.presets",
}


def run(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("imports", [pytest.param(code, id=name) for name, code in list(IMPORTS.items())[:2]])
def test_peft_knows_lime(imports: str) -> None:
    run(f"{imports}; {KNOWN}")


@pytest.mark.slow
@pytest.mark.parametrize("imports", [pytest.param(code, id=name) for name, code in list(IMPORTS.items())[2:]])
def test_peft_knows_lime_by_every_way_in(imports: str) -> None:
    run(f"{imports}; {KNOWN}")


@pytest.mark.slow
def test_programs_that_use_peft_alone_load_an_adapter(tmp_path: Path) -> None:
    """In processes of their own, with nothing of LiME but its import."""
    small.build("llava_onevision").save_pretrained(tmp_path / "base")
    base = type(small.build("llava_onevision")).from_pretrained(tmp_path / "base")
    model, _ = lime.apply(base)
    model.save_pretrained(tmp_path / "adapter")
    base, adapter = str(tmp_path / "base"), str(tmp_path / "adapter")
    load = f"AutoModelForImageTextToText.from_pretrained({base!r})"
    run(
        "import lime; from peft import PeftModel, AutoPeftModel; from transformers import AutoModelForImageTextToText\n"
        f"model = PeftModel.from_pretrained({load}, {adapter!r}); assert model.get_model_status().peft_types\n"
        f"AutoPeftModel.from_pretrained({adapter!r}); {load}.load_adapter({adapter!r})"
    )
