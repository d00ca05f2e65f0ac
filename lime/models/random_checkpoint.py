"""Checkpoints of the named architectures with random weights, in the layout of the hub: true widths, any depth.

For what needs the shapes and not the knowledge: does it load, fit, train and save here? The words of the tokenizer are
the embedded one's, so the vocabulary is small unless asked for; special tokens, chat template and processor are those
of the family.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import AutoConfig, AutoModelForImageTextToText, AutoTokenizer

from lime.models.architectures import ARCHITECTURES, agreeing
from lime.processors.config import CHECKPOINTS, EMBEDDED
from lime.system.atomic import replacing_folder
from lime.system.ownership import check_replaceable

KIND = "checkpoint of random weights"
_TILES = 6
_STILL, _MOVING, _PROCESSOR = "preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json"


def write_random_checkpoint(
    name: str,
    folder: Path,
    *,
    layers: int | None = None,
    full_vocabulary: bool = False,
    seed: int = 0,
    overwrite: bool = False,
    sizes: Mapping[str, Mapping[str, Any]] | None = None,
) -> Path:
    """Write a checkpoint of the architecture ``name`` with random bfloat16 weights into ``folder``.

    Args:
        name: a key of ``ARCHITECTURES``.
        layers: blocks of each tower; None for all.
        full_vocabulary: embeddings of the published size; else as many as the tokenizer has.
        seed: seed of the weights.
        overwrite: replace whatever is in ``folder``; else only a checkpoint that was written so is replaced.
        sizes: other values in the configuration, of its ``text`` and ``vision`` part and of the ``model`` itself.

    Raises:
        ValueError: unknown name.
        FileExistsError: ``folder`` holds something else.
    """
    if name not in ARCHITECTURES:
        raise ValueError(f"no architecture named {name!r}: expected one of {', '.join(ARCHITECTURES)}")
    check_replaceable(folder, KIND, overwrite=overwrite)
    family, options = ARCHITECTURES[name].family, ARCHITECTURES[name].config()
    text, vision = options["text_config"], options["vision_config"]
    for part, values in (sizes or {}).items():
        {"text": text, "vision": vision, "model": options}[part].update(values)
    if layers is not None:
        _cut(family, text, vision, layers)
    tokenizer, template, files = _prepared(family, vision, options)
    if not full_vocabulary:
        text["vocab_size"] = len(tokenizer)
    options |= _token_ids(family, tokenizer)
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        text[key] = getattr(tokenizer, key)
    if family == "llava_onevision":
        options["image_grid_pinpoints"] = files[_STILL]["image_grid_pinpoints"]
    torch.manual_seed(seed)
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        config = AutoConfig.for_model(family, **agreeing(family, options))
        model = AutoModelForImageTextToText.from_config(config)
    finally:
        torch.set_default_dtype(default)
    if family == "gemma3":  # zero in a fresh model
        torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight, std=0.02)
    with replacing_folder(folder, KIND, overwrite=overwrite) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        (temporary / "chat_template.jinja").write_text(template, encoding="utf-8")
        for file, content in files.items():
            (temporary / file).write_text(json.dumps(content, indent=2), encoding="utf-8")
    return folder


def _cut(family: str, text: dict[str, Any], vision: dict[str, Any], layers: int) -> None:
    text["num_hidden_layers"] = layers
    vision["depth" if family.startswith("qwen2") else "num_hidden_layers"] = layers
    if family == "qwen2_5_vl":  # the last block sees all patches, as in the whole tower
        vision["fullatt_block_indexes"] = [layers - 1]
    if family == "gemma3":  # the last block sees all tokens, as in the whole model one in six does
        text["layer_types"] = ["sliding_attention"] * (layers - 1) + ["full_attention"]


def _prepared(family: str, vision: dict[str, Any], options: dict[str, Any]) -> tuple[Any, str, dict[str, Any]]:
    """Tokenizer, chat template and processor files."""
    own = yaml.safe_load(Path(__file__).with_name("processing.yaml").read_text(encoding="utf-8")).get(family, {})
    base = {"qwen2_5_vl": "qwen2_vl"}.get(family, family)
    embedded = CHECKPOINTS / next((name for name, kind in EMBEDDED.items() if kind == base), "tiny_llava_onevision")
    files = {name: json.loads((embedded / name).read_text(encoding="utf-8")) for name in (_STILL, _MOVING, _PROCESSOR)}
    template = own.get("template") or (embedded / "chat_template.jinja").read_text(encoding="utf-8")
    given = {key: own[key] for key in ("bos_token", "eos_token") if key in own}
    if "named" in own:
        given["extra_special_tokens"] = own["named"]
    tokenizer = AutoTokenizer.from_pretrained(embedded, **given)
    numbers = range(1, own.get("grid", 0) + 1)
    tokens = [*own.get("tokens", ()), *(f"<row_{i}_col_{j}>" for i in numbers for j in numbers)]
    if tokens:
        tokenizer.add_special_tokens({"extra_special_tokens": tokens}, replace_extra_special_tokens=False)
    if base == "qwen2_vl":
        size = {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 16384}
        for name in (_STILL, _MOVING):
            files[name] |= {"patch_size": vision["patch_size"], "merge_size": 2, "temporal_patch_size": 2, "size": size}
            for old in ("min_pixels", "max_pixels"):
                files[name].pop(old, None)
        files[_PROCESSOR] |= own.get("processor", {})
        return tokenizer, template, files
    side, patches = vision["image_size"], vision["image_size"] // vision["patch_size"]
    if family == "llava_onevision":
        for name in (_STILL, _MOVING):
            files[name] |= {"size": {"height": side, "width": side}}
        numbers = range(1, _TILES + 1)
        files[_STILL]["image_grid_pinpoints"] = [[side * i, side * j] for i in numbers for j in numbers]
        files[_PROCESSOR]["num_image_tokens"] = patches**2
        return tokenizer, template, files
    still = {"do_convert_rgb": True, "do_rescale": True, "do_normalize": True, "do_resize": True, **own["images"]}
    still["rescale_factor"] = 1 / 255
    processor = dict(own["processor"])
    if family == "idefics3":
        still |= {"size": {"longest_edge": 4 * side}, "max_image_size": {"longest_edge": side}}
        processor["image_seq_len"] = (patches // options["scale_factor"]) ** 2
    else:
        still["size"] = {"height": side, "width": side}
        tokens_of = {"gemma3": "mm_tokens_per_image", "internvl": "image_seq_length"}
        processor["image_seq_length"] = options[tokens_of[family]]
    return tokenizer, template, {_STILL: still, _PROCESSOR: processor}


def _token_ids(family: str, tokenizer: Any) -> dict[str, int]:
    """The ids of special tokens that the family's configuration holds."""
    names = {
        "llava_onevision": {"image_token_index": "<image>", "video_token_index": "<video>"},
        "idefics3": {"image_token_id": "<image>"},
        "gemma3": {
            "image_token_index": "<image_soft_token>",
            "boi_token_index": "<start_of_image>",
            "eoi_token_index": "<end_of_image>",
        },
        "internvl": {"image_token_id": "<IMG_CONTEXT>"},
    }.get(family)
    if names is None:  # both of Qwen
        marks = {"image": "image_pad", "video": "video_pad", "vision_start": "vision_start", "vision_end": "vision_end"}
        names = {f"{kind}_token_id": f"<|{mark}|>" for kind, mark in marks.items()}
    return {key: int(tokenizer.convert_tokens_to_ids(token)) for key, token in names.items()}
