"""The adapter format, and what an adapter's files may hold: values that training can have saved, and options that name
nothing else to load.

An adapter is a folder in peft's layout: `adapter_config.json` with the options of `LimeConfig` and `format_version`,
and `adapter_model.safetensors` with the keys, for each adapted layer `base_model.model.<module>.`,

    lime_delta.<parameter>   the update; A and B for LoRA
    lime_experts             modulators p_i, (E, d_out)
    lime_shared, lime_gamma  shared modulator, (d_out,), and its scalar, (1,)
    lime_ranks               modulators q_i of the rank, (E, r)
    lime_router.<tensor>     weight (E, d_in) of the learned router; features (E,) of random feature slices and those of
                             largest variance; shift and scale (E,) of norms with a scale of each feature

Whoever renames a key adds one to `FORMAT_VERSION` and enters the rename in `KEY_MAPS`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from peft import PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTuner
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lime.system.ownership import check_unchanged

Value = TypeVar("Value")

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
LEADS_ELSEWHERE = {
    "megatron_config": None, "megatron_core": "megatron.core", "shadow_model": None, "tokenizer_name_or_path": None,
    "tokenizer_kwargs": None, "prompt_tuning_init_state_dict_path": None, "corda_config": None, "lora_ga_config": None,
    "eva_config": None, "arrow_config": None, "adapters": None,
}  # fmt: skip
"""Options of the `peft` library that import a module or read other files, models or tokenizers; what is harmless."""

_FEATURES, _EXPERTS = "lime_router.features", "lime_experts"


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """The tensors of an adapter by their names in the file. What was changed, or no training saves, is refused.

    Raises:
        ValueError: files other than the folder's mark says; options that lead to other files or modules; tensors of
            other than 16, 32 or 64 bits, or with values that are not finite. Names file and tensor or option.
    """
    check_unchanged(folder, (CONFIG_FILE, WEIGHTS_FILE))
    _check_options(folder / CONFIG_FILE)
    path = folder / WEIGHTS_FILE
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path}: not a whole safetensors file ({error})") from error
    for key, value in tensors.items():
        _check_values(path, key, value)
    return tensors


def _check_values(path: Path, key: str, value: Tensor) -> None:
    if value.is_floating_point() or value.is_complex():
        if value.dtype not in FLOATS:
            raise ValueError(f"{path}: {key} is of {value.dtype}; expected float32, bfloat16 or float16")
        bad = int((~value.isfinite()).sum())
        if bad:
            raise ValueError(
                f"{path}: {key}: {bad} of {value.numel()} values are not finite; the training diverged, or the file "
                "is damaged"
            )


def check_types(path: Path, saved: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Raise ValueError where a tensor has integers in place of numbers, or a router features that its layer lacks.

    Args:
        saved: the file's tensors by their present names.
        expected: those of the model that they are for.
    """
    for key, value in saved.items():
        if key not in expected:
            continue
        twice = value.dtype == torch.float64 and expected[key].dtype != torch.float64  # for a base in float64 alone
        if value.is_floating_point() != expected[key].is_floating_point() or twice:
            raise ValueError(f"{path}: {key} is of {value.dtype}, expected {expected[key].dtype}")
        experts_EO = expected.get(key.removesuffix(_FEATURES) + _EXPERTS)
        if key.endswith(_FEATURES) and experts_EO is not None:
            low, high, width = int(value.min()), int(value.max()), experts_EO.shape[1]
            if low < 0 or high >= width:
                raise ValueError(f"{path}: {key}: expected features from 0 to {width - 1}, got {low} to {high}")


def _check_options(path: Path) -> None:
    try:
        options = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not the configuration of a peft adapter ({error!r})") from error
    if not isinstance(options, dict):
        raise ValueError(f"{path}: not the configuration of a peft adapter (expected an object)")
    inner = options.get("base_options")
    for given in (options, inner if isinstance(inner, dict) else {}):
        for name, harmless in LEADS_ELSEWHERE.items():
            if given.get(name) not in (None, harmless, {}):
                raise ValueError(f"{path}: {name}: leads to other files or modules; an adapter may not")
    kind: Any = options.get("peft_type")
    if not isinstance(kind, str):
        raise ValueError(f"{path}: not the configuration of a peft adapter (peft_type: expected a name, got {kind!r})")
    tuners: dict[Any, Any] = dict(PEFT_TYPE_TO_TUNER_MAPPING)
    tuner = tuners.get(kind)
    if tuner is not None and not _adapts_layers(tuner):
        raise ValueError(f"{path}: peft_type {kind!r} adapts no layers of a model; expected a type that does")


def _adapts_layers(tuner: Any) -> bool:
    return isinstance(tuner, type) and issubclass(tuner, BaseTuner) and hasattr(tuner, "tuner_layer_cls")


# -- versions of the format ---------------------------------------------------------------------------------------

FORMAT_VERSION = 1
"""Version of the files that this package writes."""

KEY_MAPS: dict[int, dict[str, str]] = {
    0: {},  # files from before versions were written: the same keys
}
"""For each older version, renames to the next one: regular expression -> replacement, over whole keys. A pattern must
not match keys of the present version, so that the map can be applied without knowing a file's version."""


def check_version(version: object) -> None:
    """Raise ValueError for an adapter of a later version than this package knows."""
    if not isinstance(version, int) or isinstance(version, bool) or version < 0:
        raise ValueError(f"format_version: expected a whole number from 0, got {version!r}")
    if version > FORMAT_VERSION:
        raise ValueError(
            f"format_version: the adapter has format {version}, this version of lime reads formats up to "
            f"{FORMAT_VERSION}; install a later one"
        )


def upgrade_key(key: str) -> str:
    """The present name of a key of any older version."""
    for version in range(FORMAT_VERSION):
        for pattern, replacement in KEY_MAPS[version].items():
            key, count = re.subn(pattern, replacement, key)
            if count:
                break
    return key


def upgrade_keys(items: Iterable[tuple[str, Value]]) -> dict[str, Value]:
    """Entries of an adapter file under their present names.

    Raises:
        ValueError: two keys get the same name.
    """
    upgraded: dict[str, Value] = {}
    origin: dict[str, str] = {}
    for old, value in items:
        new = upgrade_key(old)
        if new in upgraded:
            raise ValueError(f"adapter keys {origin[new]} and {old} are both {new} in format {FORMAT_VERSION}")
        upgraded[new], origin[new] = value, old
    return upgraded
