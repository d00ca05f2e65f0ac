"""What makes two runs the same run: a hash of everything in the configuration that can change a result.

A sweep names each run's folder by it, so that the same command finds its earlier runs again.
"""

from __future__ import annotations

import hashlib
import json
import operator
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lime.config.searched import SEARCHED, searched
from lime.config.source import values_of
from lime.data.config import OWN
from lime.data.tasks import mmt47

RUN_ID = "run_id"
"""OmegaConf resolver: ``${run_id:}`` is the short hash of the configuration that it stands in."""
MINI_ROOT = "mini_root"
"""OmegaConf resolver: ``${mini_root:SEED,TRAIN,TEST}`` is the folder of the embedded benchmark of these settings."""

SHORT = 12
EMBEDDED_DATA = "mmt47_mini"
EMBEDDED_ROOT = "data/mmt47_mini"
_EMBEDDED_SETTINGS = (0, 140, 60)

WITHOUT_EFFECT = (
    "name",
    "cache_dir",
    "reuse",
    "objective",
    "callbacks.progress",
    "callbacks.checkpoint",
    "callbacks.checkpoint_every_n_steps",
    "callbacks.keep_checkpoints",
    "callbacks.keep_best",
    "logger",
    "model.recipe",
    "peft.module",
    "peft_module",
    "evaluation.module",
    "data.num_workers",
    "data.prefetch",
    "data.cache_mb",
    "data.frame_cache",
    "data.mini.workers",
    "trainer.num_threads",
    "trainer.preflight",
    "trainer.log_every_n_steps",
)
"""Keys (or sections) that name, place, show or speed up a run; ``model.recipe`` acts through the keys that take it up,
``peft.module`` through ``peft.type``.

The number of threads changes sums in their last digits: it stands in the record, but does not make another run."""

LATER: dict[str, Any] = {
    "evaluation.metrics": None,
    "trainer.val_check_interval": None,
    "trainer.extra": None,
    "callbacks.weights": "last",
    "callbacks.early_stopping": None,
    "callbacks.min_delta": None,
    "callbacks.extra": None,
    "peft.rslora": False,
    "optim.language_model": {"moe_lr": None, "peft_lr": None},
    "optim.vision_tower": {"moe_lr": None, "peft_lr": None},
    "optim.projector": {"moe_lr": None, "peft_lr": None},
    "optim.loraplus_ratio": None,
    "trainer.neftune_alpha": None,
    "lime.modulator_range": 0.1,
    "lime.rank_modulation": False,
    "lime.balance.start_ratio": 0.0,
}
"""Options younger than the first records, and the value at which a run is what it was before there was the option: with
that value they do not count."""


def decisive(values: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a resolved configuration that can change a result.

    Paths count by the place they lead to, so that ``a`` and ``./a`` are one. ``data.root`` of the embedded benchmark
    does not count, since its settings say what is generated there; those settings do not count for other data.
    ``ckpt_path`` counts where it names a checkpoint, with the checkpoint's size and time.
    """
    kept = _without(values, "", frozenset(WITHOUT_EFFECT))
    data, model = kept.get("data"), kept.get("model")
    if isinstance(data, dict):
        embedded = data.get("name") == EMBEDDED_DATA
        data.pop("root" if embedded else "mini", None)
        if data.get("name") != OWN:  # what came with data of one's own
            for key in ("test_fraction", "train_on"):
                data.pop(key, None)
        if data.get("least_steps") is None:
            data.pop("least_steps", None)
        if isinstance(data.get("root"), str):
            data["root"] = _place(data["root"])
    if isinstance(model, dict) and isinstance(model.get("path"), str) and Path(model["path"]).expanduser().exists():
        model["path"] = _place(model["path"])
    evaluation = kept.get("evaluation")
    own = isinstance(data, dict) and data.get("name") == OWN
    if isinstance(evaluation, dict) and evaluation.get("splits") and not own:
        evaluation["splits"] = mmt47().splits(evaluation["splits"])  # [sst2] is [glue_test_sst2]
    _drop_later(kept)
    start = kept.pop("ckpt_path", None)
    if start not in (None, "auto"):
        kept["ckpt_path"] = [_place(str(start)), *_state(Path(str(start)).expanduser())]
    return kept


def config_hash(values: Mapping[str, Any]) -> str:
    """Short hash of the :func:`decisive` part of a resolved configuration. Whole floats equal their integers."""
    text = json.dumps(_canonical(decisive(values)), sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:SHORT]


def register_resolvers() -> None:
    """Offer ``${run_id:}``, ``${mini_root:…}``, ``${searched:…}`` and ``${times:FACTOR,NUMBER}`` to what is composed in
    this process."""
    times: Callable[..., Any] = operator.mul
    for name, resolver in ((RUN_ID, _resolve), (MINI_ROOT, mini_root), (SEARCHED, searched), ("times", times)):
        OmegaConf.register_new_resolver(name, resolver, replace=True)


def mini_root(seed: int, train_per_task: int, test_per_task: int) -> str:
    """A folder for each variant of the embedded benchmark, so that one run never replaces another's rows."""
    variant = (seed, train_per_task, test_per_task)
    return EMBEDDED_ROOT + ("" if variant == _EMBEDDED_SETTINGS else "-" + "-".join(map(str, variant)))


def _resolve(*, _root_: DictConfig) -> str:
    return config_hash(values_of(_root_))


def _place(path: str) -> str:
    return str(Path(path).expanduser().resolve())


def _state(path: Path) -> list[Any]:
    """Size and time of a file; of a folder (DeepSpeed's checkpoints), those of its files."""
    files = sorted(Path(top, name) for top, _, names in os.walk(path) for name in names) if path.is_dir() else [path]
    states = [file.stat() for file in files if file.exists()]
    return [[state.st_size, state.st_mtime_ns] for state in states]


def _without(values: Mapping[str, Any], prefix: str, dropped: frozenset[str]) -> dict[str, Any]:
    kept = {}
    for name, value in values.items():
        key = f"{prefix}{name}"
        if key not in dropped:
            kept[str(name)] = _without(value, f"{key}.", dropped) if isinstance(value, Mapping) else value
    return kept


def _drop_later(kept: dict[str, Any]) -> None:
    for key, usual in LATER.items():
        *sections, name = key.split(".")
        place: Any = kept
        for section in sections:
            place = place.get(section) if isinstance(place, dict) else None
        if isinstance(place, dict) and (place.get(name) or None) == (usual or None):
            place.pop(name, None)
    if not kept.get("callbacks"):
        kept.pop("callbacks", None)


def _canonical(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _canonical(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_canonical(item) for item in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value
