"""What makes two runs the same run: a hash of everything in the configuration that can change a result.

A sweep names each run's folder by it, so that the same command finds its earlier runs again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lime.data.tasks import split_names

RUN_ID = "run_id"
"""OmegaConf resolver: ``${run_id:}`` is the short hash of the configuration that it stands in."""

SHORT = 12

WITHOUT_EFFECT = (
    "name",
    "ckpt_path",
    "cache_dir",
    "reuse",
    "callbacks",
    "logger",
    "data.root",
    "data.num_workers",
    "data.cache_mb",
    "data.mini.workers",
    "trainer.num_threads",
    "trainer.preflight",
)
"""Keys (or sections) that name, place, show or speed up a run. What ``data.root`` holds counts by its fingerprint."""


def config_hash(values: Mapping[str, Any]) -> str:
    """Short hash of a resolved configuration, without :data:`WITHOUT_EFFECT`. Whole floats equal their integers."""
    kept = _without(values, "", frozenset(WITHOUT_EFFECT))
    evaluation = kept.get("evaluation")
    if isinstance(evaluation, dict) and evaluation.get("splits"):  # [sst2] is [glue_test_sst2]
        evaluation["splits"] = split_names(evaluation["splits"])
    text = json.dumps(_canonical(kept), sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:SHORT]


def register_run_id() -> None:
    """Offer ``${run_id:}`` to every configuration composed in this process."""
    OmegaConf.register_new_resolver(RUN_ID, _resolve, replace=True)


def _resolve(*, _root_: DictConfig) -> str:
    values = {str(key): _plain(_root_, str(key)) for key in _root_ if key != "hydra"}
    return config_hash(values)


def _plain(root: DictConfig, key: str) -> Any:
    value = root[key]
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def _without(values: Mapping[str, Any], prefix: str, dropped: frozenset[str]) -> dict[str, Any]:
    kept = {}
    for name, value in values.items():
        key = f"{prefix}{name}"
        if key not in dropped:
            kept[str(name)] = _without(value, f"{key}.", dropped) if isinstance(value, Mapping) else value
    return kept


def _canonical(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _canonical(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_canonical(item) for item in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value
