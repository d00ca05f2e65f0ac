"""Checkpoints of the published architectures with random weights, in the layout of the hub: true widths, any depth.

For what needs the shapes and not the knowledge: does it load, fit, train and save here? Tokenizer and chat template are
the embedded ones, so the vocabulary is small unless asked for.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText, AutoTokenizer

from lime.models.architectures import ARCHITECTURES
from lime.processors.config import CHECKPOINTS, EMBEDDED
from lime.system.atomic import replacing_folder
from lime.system.ownership import check_replaceable

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
KIND = "checkpoint of random weights"
_SIDE = 384
_TILES = 6


def write_random_checkpoint(
    name: str,
    folder: Path,
    *,
    layers: int | None = None,
    full_vocabulary: bool = False,
    seed: int = 0,
    overwrite: bool = False,
) -> Path:
    """Write a checkpoint of the architecture ``name`` with random bfloat16 weights into ``folder``.

    Args:
        name: a key of ``ARCHITECTURES``.
        layers: blocks of each tower; None for all.
        full_vocabulary: embeddings of the published size; else as many as the embedded tokenizer has.
        seed: seed of the weights.
        overwrite: replace whatever is in ``folder``; else only a checkpoint that was written so is replaced.

    Raises:
        ValueError: unknown name.
        FileExistsError: ``folder`` holds something else.
    """
    if name not in ARCHITECTURES:
        raise ValueError(f"no architecture named {name!r}: expected one of {', '.join(ARCHITECTURES)}")
    check_replaceable(folder, KIND, overwrite=overwrite)
    architecture = ARCHITECTURES[name]
    family, options = architecture.family, architecture.config()
    embedded = CHECKPOINTS / next(name for name, own in EMBEDDED.items() if own == family)
    tokenizer = AutoTokenizer.from_pretrained(embedded)
    text, vision = options["text_config"], options["vision_config"]
    if layers is not None:
        text["num_hidden_layers"] = layers
        vision["depth" if family == "qwen2_vl" else "num_hidden_layers"] = layers
    if not full_vocabulary:
        text["vocab_size"] = len(tokenizer)
    known = json.loads((embedded / "config.json").read_text(encoding="utf-8"))
    options |= {key: value for key, value in known.items() if key.endswith(("_token_id", "_token_index"))}
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        text[key] = getattr(tokenizer, key)
    if family == "llava_onevision":
        options["image_grid_pinpoints"] = _pinpoints()
    torch.manual_seed(seed)
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        model = AutoModelForImageTextToText.from_config(AutoConfig.for_model(family, **options))
    finally:
        torch.set_default_dtype(default)
    with replacing_folder(folder, KIND, overwrite=overwrite) as temporary:
        model.save_pretrained(temporary)
        for file in _TOKENIZER_FILES:
            shutil.copy(embedded / file, temporary / file)
        for file, content in _processor_files(family, embedded).items():
            (temporary / file).write_text(json.dumps(content, indent=2), encoding="utf-8")
    return folder


def _pinpoints() -> list[list[int]]:
    return [[_SIDE * i, _SIDE * j] for i in range(1, _TILES + 1) for j in range(1, _TILES + 1)]


def _processor_files(family: str, embedded: Path) -> dict[str, dict[str, Any]]:
    """The embedded processor's files with the published sizes."""
    names = ("preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json")
    files = {name: json.loads((embedded / name).read_text(encoding="utf-8")) for name in names}
    for name in names[:2]:
        if family == "qwen2_vl":
            size = {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 16384}
            files[name] |= {"patch_size": 14, "merge_size": 2, "temporal_patch_size": 2, "size": size}
            for old in ("min_pixels", "max_pixels"):
                files[name].pop(old, None)
        else:
            files[name] |= {"size": {"height": _SIDE, "width": _SIDE}}
    if family == "llava_onevision":
        files[names[0]]["image_grid_pinpoints"] = _pinpoints()
        files[names[2]]["num_image_tokens"] = (_SIDE // 14) ** 2
    return files
