"""Checkpoints: written whole or not at all, and found again by the same command."""

from __future__ import annotations

import logging
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.fabric.plugins import TorchCheckpointIO

from lime.config.identity import decisive
from lime.system import nested
from lime.system.atomic import replacing
from lime.system.nested import plain

log = logging.getLogger(__name__)

AUTO = "auto"
FOLDER = "checkpoints"
_STEP = re.compile(r"step-(\d+)\.ckpt")
_SHOWN = 5
PARTS = ("state_dict", "global_step", "epoch", "loops", "optimizer_states", "lr_schedulers")
"""What every checkpoint of a run holds."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """torch's format, written beside its place and renamed, so that a kill leaves the old file or the new one.

    Lightning's own writes below the system's temporary folder first and moves, which on another disk is a copy.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        if storage_options is not None:
            raise TypeError("storage_options: expected none; checkpoints are plain local files")
        with replacing(Path(path)) as temporary, temporary.open("wb") as file:
            try:
                torch.save(checkpoint, file)
            except RuntimeError as error:  # that it could not end the file, after the system's own
                if isinstance(error.__context__, OSError):
                    raise error.__context__ from None
                raise

    def load_checkpoint(self, path: str | Path, *args: Any, **kwargs: Any) -> dict[str, Any]:
        if not Path(path).is_dir() and (problem := damage(Path(path))) is not None:
            raise ValueError(f"ckpt_path: {path}: not a checkpoint of a run, or damaged ({problem})")
        return super().load_checkpoint(path, *args, **kwargs)


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint, read to its end, in words; None for a whole one.

    Reads tensors and plain values only: nothing in the file is executed.
    """
    try:
        if not zipfile.is_zipfile(path):
            return "the file is empty" if path.stat().st_size == 0 else "it is cut off, or of another kind"
        with zipfile.ZipFile(path) as parts:
            if (bad := parts.testzip()) is not None:
                return f"the checksum of its part {bad} is wrong"
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except OSError as error:
        return error.strerror or str(error)
    except pickle.UnpicklingError:
        return "it holds something other than tensors and plain values, which is not read"
    except Exception as error:  # noqa: BLE001  # a damaged file may break its reader anywhere
        return f"it cannot be read: {type(error).__name__}"
    lacking = [key for key in PARTS if not isinstance(checkpoint, dict) or key not in checkpoint]
    return f"it lacks {', '.join(lacking)}" if lacking else None


def newest_checkpoint(folder: Path) -> Path | None:
    """The whole checkpoint of a run's folder that stands furthest in training; None where there is none.

    Looks at ``checkpoints/step-N.ckpt``, ``checkpoints/last.ckpt``, and ``hpc_ckpt_N.ckpt``, which Lightning writes
    when SLURM takes the machine away. A damaged one is named, and the one before is taken.
    """
    steps = {int(m[1]): path for path in (folder / FOLDER).glob("*.ckpt") if (m := _STEP.fullmatch(path.name))}
    numbered = sorted(steps.items(), reverse=True)
    # DeepSpeed's are folders.
    newest = next((pair for pair in numbered if pair[1].is_dir() or _is_whole(pair[1])), None)
    others = list(folder.glob("hpc_ckpt_*.ckpt"))
    if newest is None or newest[0] < numbered[0][0]:  # last.ckpt holds the step of the newest
        others.append(folder / FOLDER / "last.ckpt")
    candidates = [(step_of(path), path) for path in others if path.is_file() and _is_whole(path)]
    candidates += [newest] if newest is not None else []
    return max(candidates)[1] if candidates else None


def _is_whole(path: Path) -> bool:
    problem = damage(path)
    if problem is not None:
        log.warning("%s is damaged (%s): going on from the one before, if there is one", path, problem)
    return problem is None


def step_of(path: Path) -> int:
    """The optimiser step that a checkpoint was written after; of DeepSpeed's folders, by their name."""
    if path.is_dir():
        return int(named[1]) if (named := _STEP.fullmatch(path.name)) else 0
    return int(torch.load(path, map_location="cpu", weights_only=True)["global_step"])


def checkpoint_to_resume(ckpt_path: str | None, folder: Path, settings: Mapping[str, Any]) -> Path | None:
    """The checkpoint that a run starts from.

    Args:
        ckpt_path: ``auto``: the newest in the run's own folder, if there is one; a path; None: none.
        folder: the run's folder.
        settings: the resolved configuration.

    Raises:
        ValueError: the folder holds a run with another configuration (names the keys that differ); a named checkpoint
            is damaged.
    """
    if ckpt_path is None:
        return None
    if ckpt_path != AUTO:
        named = Path(ckpt_path)
        if named.is_file() and (problem := damage(named)) is not None:
            raise ValueError(f"ckpt_path: {named}: not a checkpoint of a run, or damaged ({problem})")
        return named
    path = newest_checkpoint(folder)
    before = _settings_before(folder)
    if path is None and not _has_results(folder):
        return None
    # Wherever it had started from, a run goes on in its own folder.
    then, now = (decisive({**plain(values), "ckpt_path": None}) for values in (before or settings, settings))
    differing = sorted(nested.differing([then, now]))
    if differing:
        sides = nested.flattened(then), nested.flattened(now)
        told = [f"{key}: {sides[0].get(key)} then, {sides[1].get(key)} now" for key in differing[:_SHOWN]]
        shown = "; ".join(told) + ("; …" if len(differing) > _SHOWN else "")
        raise ValueError(
            f"ckpt_path: {folder} holds a run with other settings ({shown}). Take another folder, or start anew with "
            "ckpt_path=null" + (f", or name the checkpoint: ckpt_path={path}" if path is not None else "")
        )
    if path is not None:
        log.info("resuming from %s", path)
    return path


def _settings_before(folder: Path) -> dict[str, Any] | None:
    """The configuration of the run that the folder holds; None where there is none, or it cannot be read any more."""
    path = folder / "config.yaml"
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, yaml.YAMLError):
        settings = None
    if not isinstance(settings, dict):
        log.warning("%s is damaged: whether the settings are those of the run before is not known", path)
        return None
    return settings


def _has_results(folder: Path) -> bool:
    """Whether a run ended here that keeps no checkpoints."""
    return (folder / "adapter").is_dir() or (folder / "results.json").is_file()


def check_same_tensors(key: str, given: dict[str, torch.Tensor], expected: dict[str, Any]) -> None:
    """Raise ValueError unless both hold the same names with the same shapes."""
    lacking = sorted(expected.keys() - given.keys())
    extra = sorted(given.keys() - expected.keys())
    shapes = [name for name in given.keys() & expected.keys() if given[name].shape != expected[name].shape]
    if not (lacking or extra or shapes):
        return
    parts = []
    for title, names in (("lacks", lacking), ("has too many", extra), ("has other shapes for", sorted(shapes))):
        if names:
            parts.append(f"{title} {len(names)} of the adapters' tensors (first: {names[0]})")
    raise ValueError(
        f"{key}: it does not fit this run's adapters: it {', it '.join(parts)}. "
        "Use the method, rank, experts and targets it was trained with"
    )
