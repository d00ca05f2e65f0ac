"""Loading a backbone: the model, its processor, and a fingerprint of what was loaded."""

from __future__ import annotations

import importlib.util
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel, ProcessorMixin
from transformers.utils import cached_file
from transformers.utils.hub import extract_commit_hash

from lime.models.fingerprint import checkpoint_fingerprint, processing_fingerprint
from lime.processors.automatic import complete_tokens, load_automatic_processor
from lime.processors.config import AUTOMATIC, EMBEDDED, FAMILIES, ModelConfig
from lime.processors.families import load_processor
from lime.processors.text import TextProcessor, is_text_only

log = logging.getLogger(__name__)


@dataclass
class Backbone:
    """A loaded backbone. `fingerprint` identifies configuration and weights, `processing` tokenizer, processor and
    template; `revision` is the hub commit, if any.
    """

    name: str
    family: str
    model: PreTrainedModel
    processor: ProcessorMixin | TextProcessor
    path: str
    revision: str | None
    fingerprint: str
    processing: str = ""


def load_backbone(config: ModelConfig) -> Backbone:
    """Model and processor of `config`, on the CPU, in evaluation mode.

    With `device_map` or `quantization` it is where and what those say.

    Raises FileNotFoundError where the checkpoint is not there (saying what to fetch and where to put it),
    ValueError where it is of another family, lacks weights of this architecture, or has a tokenizer larger
    than its embeddings.
    """
    location = config.location
    if not Path(location).exists():
        log.info("%s is no folder here: taking it from the hub or its cache", location)
    config_file = _config_file(config)
    revision = extract_commit_hash(str(config_file), None) or config.revision
    family = _family_of(config, config_file)
    processor = _processor(config, family)
    model = _load_model(config, location, family)
    if family == AUTOMATIC:
        complete_tokens(processor, model.config)
    if family == "llava_onevision":
        model.config.image_grid_pinpoints = processor.image_processor.image_grid_pinpoints
    embeddings: Any = model.get_input_embeddings()
    entries = int(embeddings.weight.shape[0])
    if len(processor.tokenizer) > entries:
        raise ValueError(
            f"model.path: {location}: its tokenizer has {len(processor.tokenizer)} entries, its embeddings "
            f"{entries}: tokenizer and weights are of different models"
        )
    fingerprint = checkpoint_fingerprint(config_file.parent)
    log.info("loaded %s (%s) from %s, fingerprint %s", config.name, model.config.model_type, location, fingerprint[:12])
    processing = processing_fingerprint(config_file.parent)
    return Backbone(config.name, family, model.eval(), processor, location, revision, fingerprint, processing)


def load_processor_alone(config: ModelConfig) -> tuple[str, ProcessorMixin | TextProcessor]:
    """Family and processor of `config`, as `load_backbone` makes them, without reading a weight.

    Raises as `load_backbone` does where the checkpoint is not there or is of another family.
    """
    family = _family_of(config, _config_file(config))
    processor = _processor(config, family)
    if family == AUTOMATIC:
        complete_tokens(processor, transformers.AutoConfig.from_pretrained(config.location, revision=config.revision))
    return family, processor


def _processor(config: ModelConfig, family: str) -> ProcessorMixin | TextProcessor:
    image, video = config.visual()
    if family == AUTOMATIC:
        return load_automatic_processor(config.location, revision=config.revision, image=image, video=video)
    return load_processor(config.location, family, revision=config.revision, image=image, video=video)


def _config_file(config: ModelConfig) -> Path:
    location = config.location
    if Path(location).is_dir():
        path = Path(location) / "config.json"
        if path.is_file():
            return path
        text = f"model.path: {location} has no config.json: expected a checkpoint folder. {_how(config)}"
        raise FileNotFoundError(text)
    if (
        config.path is None
        or Path(location).is_absolute()
        or location.startswith((".", "~"))
        or location.count("/") != 1
    ):
        raise FileNotFoundError(f"model.path: {location} is not a folder. {_how(config)}")
    try:
        cached = cached_file(location, "config.json", revision=config.revision)
    except OSError as error:
        raise FileNotFoundError(
            f"model.path: {location} is neither a local folder nor reachable on the hub or in its cache. {_how(config)}"
        ) from error
    assert cached is not None
    return Path(cached)


def _how(config: ModelConfig) -> str:
    if config.path is None and config.name in EMBEDDED:
        return (
            "The embedded checkpoints belong to the package: install it again, or train one with "
            f"`python scripts/pretrain_tiny.py --model {config.name}`"
        )
    name = (
        config.path if config.path and config.path.count("/") == 1 and not config.path.startswith(".") else "ORG/NAME"
    )
    revision = f" --revision {config.revision}" if config.revision else ""
    return (
        f"On a machine with access: `hf download {name}{revision} --local-dir FOLDER` (config, tokenizer, "
        "processor files and *.safetensors), bring FOLDER here, and set model.path=FOLDER"
        f"{_instead(config)}"
    )


def _instead(config: ModelConfig) -> str:
    """What runs without the hub, for the backbones that have a configuration of their own."""
    tiny = next((name for name, family in EMBEDDED.items() if family == config.family), None)
    if tiny is None or config.name in EMBEDDED:
        return ""
    return (
        f". Without access: model={tiny} comes with the package, and `python scripts/random_checkpoint.py "
        f"{config.name} FOLDER` writes one of this size with random weights"
    )


def _family_of(config: ModelConfig, config_file: Path) -> str:
    """The family to load as; a checkpoint of ours under model=hf is loaded as what it is."""
    try:
        model_type = json.loads(config_file.read_text(encoding="utf-8")).get("model_type")
    except json.JSONDecodeError as error:
        raise ValueError(f"{config_file}: not valid JSON ({error}); fetch the file again") from error
    if model_type == config.family:
        return config.family
    if config.family == AUTOMATIC:
        return model_type if model_type in FAMILIES else AUTOMATIC
    if is_text_only(str(model_type)):
        raise ValueError(
            f"model.path: {config.location} holds a {model_type!r} model, which takes text alone, but model.family is "
            f"{config.family!r}; adapt it to tasks of text with model=hf model.path={config.location}"
        )
    advice = (
        f"set model.family={model_type}"
        if model_type in FAMILIES
        else f"supported are {', '.join(FAMILIES)}, and other vision-language models by model=hf "
        f"model.path={config.location}"
    )
    raise ValueError(
        f"model.path: {config.location} holds a {model_type!r} model, but model.family is {config.family!r}; {advice}"
    )


def _quantised(config: ModelConfig) -> dict[str, Any]:
    """Arguments that load the base in 8 or 4 bits, where bitsandbytes is installed."""
    if config.quantization is None:
        return {}
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ValueError(
            f"model.quantization: {config.quantization} needs bitsandbytes, which is not installed; "
            "`pip install 'lime-moe[quantised]'`, or set model.quantization=null"
        )
    if config.quantization == "8bit":
        return {"quantization_config": transformers.BitsAndBytesConfig(load_in_8bit=True)}
    four = transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
    )
    return {"quantization_config": four}


def _load_model(config: ModelConfig, location: str, family: str) -> PreTrainedModel:
    text_only = is_text_only(transformers.AutoConfig.from_pretrained(location, revision=config.revision).model_type)
    automatic = "AutoModelForCausalLM" if text_only else "AutoModelForImageTextToText"
    cls = getattr(transformers, FAMILIES.get(family, automatic))
    dtype = "auto" if config.dtype == "auto" else getattr(torch, config.dtype)
    try:
        model, report = cls.from_pretrained(
            location,
            revision=config.revision,
            dtype=dtype,
            attn_implementation=config.attn_implementation,
            output_loading_info=True,
            **({"device_map": config.device_map} if config.device_map is not None else {}),
            **_quantised(config),
        )
    except OSError as error:
        raise FileNotFoundError(
            f"model.path: no weights could be read from {location}: {error}. {_how(config)}"
        ) from error
    except RuntimeError as error:
        raise ValueError(f"model.path: the weights in {location} do not fit its own config.json: {error}") from error
    except ValueError as error:
        if family != AUTOMATIC:
            raise
        raise ValueError(
            f"model.path: {location} cannot be loaded by {automatic}, which model=hf needs: {error}"
        ) from error
    absent = sorted(report["missing_keys"])
    wrong = sorted(str(key) for key in report.get("mismatched_keys", ()))
    if absent or wrong:
        raise ValueError(
            f"model.path: the weights in {location} are not those of a {model.config.model_type} model: "
            f"{len(absent)} missing ({', '.join(absent[:3])}…), "
            f"{len(wrong)} of another shape ({', '.join(wrong[:3])})"
        )
    if report["unexpected_keys"]:
        log.warning("%s: %d weights that the model does not have", location, len(report["unexpected_keys"]))
    return model
