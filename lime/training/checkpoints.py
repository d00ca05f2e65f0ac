"""Checkpoints: written whole or not at all, and found again by the same command."""

from __future__ import annotations

import logging
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.fabric.plugins import TorchCheckpointIO

from lime.atomic import replacing
from lime.config.identity import WITHOUT_EFFECT, config_hash

log = logging.getLogger(__name__)

AUTO = "auto"
FOLDER = "checkpoints"
_STEP = re.compile(r"step-(\d+)\.ckpt")
_SHOWN = 5


class AtomicCheckpointIO(TorchCheckpointIO):
    """torch's format, written beside its place and renamed, so that a kill leaves the old file or the new one."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        if storage_options is not None:
            raise TypeError("storage_options: expected none; checkpoints are plain local files")
        with replacing(Path(path)) as temporary:
            torch.save(checkpoint, temporary)

    def load_checkpoint(self, path: str | Path, *args: Any, **kwargs: Any) -> dict[str, Any]:
        try:
            return super().load_checkpoint(path, *args, **kwargs)
        except (pickle.UnpicklingError, EOFError, RuntimeError) as error:
            said = str(error).strip().splitlines()[0] if str(error) else type(error).__name__
            raise ValueError(f"ckpt_path: {path}: not a checkpoint of a run, or damaged ({said})") from error


def newest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint of a run's folder that stands furthest in training; None where there is none.

    Looks at ``checkpoints/step-N.ckpt``, ``checkpoints/last.ckpt``, and ``hpc_ckpt_N.ckpt``, which Lightning writes
    when SLURM takes the machine away.
    """
    steps = {int(m[1]): path for path in (folder / FOLDER).glob("*.ckpt") if (m := _STEP.fullmatch(path.name))}
    found = list(steps.items())
    others = [*folder.glob("hpc_ckpt_*.ckpt")]
    if not steps:
        others += [path for path in (folder / FOLDER).glob("last.ckpt") if path.is_file()]
    found += [(_step_of(path), path) for path in others]
    return max(found, key=lambda pair: pair[0])[1] if found else None


def _step_of(path: Path) -> int:
    return int(torch.load(path, map_location="cpu", weights_only=True)["global_step"])


def checkpoint_to_resume(ckpt_path: str | None, folder: Path, settings: Mapping[str, Any]) -> Path | None:
    """The checkpoint that a run starts from.

    Args:
        ckpt_path: ``auto``: the newest in the run's own folder, if there is one; a path; None: none.
        folder: the run's folder.
        settings: the resolved configuration.

    Raises:
        ValueError: the folder's checkpoint is of a run with another configuration; names the keys that differ.
    """
    if ckpt_path is None:
        return None
    if ckpt_path != AUTO:
        return Path(ckpt_path)
    path = newest_checkpoint(folder)
    if path is None:
        return None
    config = folder / "config.yaml"
    before = yaml.safe_load(config.read_text(encoding="utf-8")) if config.is_file() else None
    if before is not None and config_hash(before) != config_hash(dict(settings)):
        differing = sorted(_differences(before, settings, ""))
        shown = "; ".join(differing[:_SHOWN]) + ("; …" if len(differing) > _SHOWN else "")
        raise ValueError(
            f"ckpt_path: {folder} holds an unfinished run with other settings ({shown}). Take another folder, start "
            f"anew with ckpt_path=null, or name the checkpoint: ckpt_path={path}"
        )
    log.info("resuming from %s", path)
    return path


def _differences(before: Any, now: Any, key: str) -> list[str]:
    if key in WITHOUT_EFFECT:
        return []
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        names = dict.fromkeys([*before, *now])
        return [
            text for name in names for text in _differences(before.get(name), now.get(name), f"{key}.{name}".strip("."))
        ]
    same = (list(before) if isinstance(before, tuple) else before) == (list(now) if isinstance(now, tuple) else now)
    return [] if same else [f"{key}: {before} then, {now} now"]
