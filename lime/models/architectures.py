"""The named backbones as shapes (architectures.yaml), from which models are built without any weights."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from lime.processors.config import CHECKPOINTS

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_CONTENT = yaml.safe_load(Path(__file__).with_name("architectures.yaml").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Architecture:
    """A named backbone: its family (transformers' model type), its hub name, and the shape of its language model."""

    family: str
    checkpoint: str
    text: dict[str, Any]

    def config(self) -> dict[str, Any]:
        """Keyword arguments of the transformers configuration class, new at each call."""
        shared = copy.deepcopy(_CONTENT)  # transformers completes what it is given in place
        family = shared["families"][self.family]
        vision = family["vision"]
        text = {**shared["text"], **self.text, **family["text"]}
        tie = self.text["tie_word_embeddings"]
        options = {"text_config": text, "vision_config": vision, "tie_word_embeddings": tie, **family.get("model", {})}
        return agreeing(self.family, options)


def agreeing(family: str, options: dict[str, Any]) -> dict[str, Any]:
    """Options of a configuration, with what follows from others: the width that a vision tower hands on."""
    width = {"qwen2_vl": "hidden_size", "qwen2_5_vl": "out_hidden_size"}.get(family)
    if width is not None:
        options["vision_config"][width] = options["text_config"]["hidden_size"]
    return options


ARCHITECTURES = {name: Architecture(**values) for name, values in _CONTENT["backbones"].items()}
"""The named backbones, as in conf/model."""


def build_shapes(name: str, folder: Path | None = None) -> PreTrainedModel:
    """A backbone on the meta device: every shape, no weights, no memory.

    Args:
        name: a key of `ARCHITECTURES`, or the name of an embedded backbone.
        folder: a local checkpoint, of which only `config.json` is read; then the name does not matter.

    Raises:
        ValueError: unknown name.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

    from lime.processors.text import is_text_only

    if folder is None and name in ARCHITECTURES:
        architecture = ARCHITECTURES[name]
        config = AutoConfig.for_model(architecture.family, **architecture.config())
    else:
        folder = folder or CHECKPOINTS / name
        if not (folder / "config.json").is_file():
            known = ", ".join(ARCHITECTURES)
            raise ValueError(f"model: no shapes for {name!r}: expected one of {known}, or a folder with a config.json")
        config = AutoConfig.from_pretrained(folder)
    kind: Any = AutoModelForCausalLM if is_text_only(config.model_type) else AutoModelForImageTextToText
    with torch.device("meta"):
        model: PreTrainedModel = kind.from_config(config)
    return model
