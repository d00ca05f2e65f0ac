"""A run on Weights & Biases: metrics, configuration, sample predictions with their pictures, expert usage."""

from __future__ import annotations

import itertools
import logging
import os
import re
import secrets
import string
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import wandb
from PIL import Image

from lime.config.sweeps import read_plan
from lime.config.training import WandbConfig
from lime.data.datamodule import MMTDataModule
from lime.data.media import MediaError, load_image, load_video, media_file
from lime.evaluation.aggregation import Evaluation
from lime.evaluation.predictions import Prediction
from lime.loggers.guard import first_line, not_fatal
from lime.loggers.usage import usage_figure
from lime.loggers.values import USAGE, costs, scores
from lime.runs.record import Parameters, Training
from lime.system.atomic import write_text

log = logging.getLogger(__name__)
_not_fatal = not_fatal("wandb", wandb.errors.Error, OSError)

PREDICTIONS = "predictions"
"""Key of the table of predictions."""
PREDICTION_COLUMNS = ("id", "task", "picture", "question", "raw", "extracted", "truth", "correct", "frozen")
DATA_DIR = "WANDB_DATA_DIR"
ID_FILE = ".lime-wandb-id"
FRAMES = 4  # of a video in the table


class WandbRun:
    """One run with the real client.

    A run of a sweep is named by its point and, unless ``config.group`` says otherwise, grouped under the sweep's name.

    Args:
        config: project, names, mode.
        name: name of the run.
        folder: the run's folder; offline runs lie in its ``wandb`` subfolder until ``wandb sync``.
        settings: the resolved configuration.
        continues: the run goes on from a checkpoint of its folder; else what an earlier start logged is replaced.
    """

    def __init__(
        self, config: WandbConfig, name: str, folder: Path, settings: Mapping[str, Any], *, continues: bool = False
    ):
        self._config = config
        # Pictures of tables wait for their upload in wandb's data folder: keep them with the run, not with the user.
        self._sets_data_dir = DATA_DIR not in os.environ
        if self._sets_data_dir:
            os.environ[DATA_DIR] = str((folder / "wandb").resolve())
        sweep, point = point_of(folder)
        options: dict[str, Any] = {
            "project": config.project,
            "entity": config.entity,
            "group": config.group or sweep,
            "tags": config.tags or None,
            "name": f"{name} {point}" if point else name,
            "dir": str(folder),
            "config": dict(settings),
            "id": run_id(folder),
        }
        mode = resolve_mode(config.mode)
        try:
            self._run = wandb.init(**options, mode=mode, resume="allow" if continues and mode == "online" else None)
        except wandb.errors.Error as error:
            if mode != "online":
                raise ValueError(f"logger.wandb: {error}; leave it out with logger=csv") from error
            log.warning("wandb: %s; offline instead (logger.wandb.mode=offline does not ask)", first_line(error))
            wandb.teardown()
            self._run = wandb.init(**options, mode="offline")
        append = "--append " if continues else ""
        self._upload = f"wandb sync {append}{Path(self._run.dir).parent}" if self._run.offline else None
        if self._upload:
            log.info("wandb: offline; once logged in, upload with: %s", self._upload)

    @_not_fatal
    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        self._run.log(dict(metrics), step=step)

    @_not_fatal
    def log_training(
        self, parameters: Parameters, measured: Training, usage: Mapping[str, Sequence[float]], adapter_bytes: int
    ) -> None:
        """What is known after training: its costs into the summary, and the expert usage."""
        self.log_results(costs(parameters, measured, adapter_bytes))
        if usage:
            self.log_usage(usage)

    @_not_fatal
    def log_run(self, predictions: Sequence[Prediction], evaluation: Evaluation, data: MMTDataModule) -> None:
        """What is known at the end of a run: scores, sample predictions with their pictures."""
        self.log_results(scores(evaluation))
        chosen = sample(predictions, self._config.samples)
        if chosen:
            self.log_predictions(chosen, lambda prediction: picture(prediction, data))

    def log_usage(self, usage: Mapping[str, Sequence[float]]) -> None:
        """The heat map of expert usage by layer."""
        self._run.log({USAGE: wandb.Image(usage_figure(usage))})

    def log_predictions(
        self, predictions: Sequence[Prediction], picture: Callable[[Prediction], Image.Image | None]
    ) -> None:
        """A table of predictions; ``picture`` gives the image of a row (frames side by side for a video)."""
        table = wandb.Table(columns=list(PREDICTION_COLUMNS))
        for p in predictions:
            image = picture(p)
            shown = wandb.Image(image) if image is not None else None
            raw, extracted, frozen = (None if text is None else str(text) for text in (p.raw, p.extracted, p.frozen))
            table.add_data(p.id, p.split, shown, p.question, raw, extracted, p.truth, p.correct, frozen)
        self._run.log({PREDICTIONS: table})

    def log_results(self, results: Mapping[str, Any]) -> None:
        """Scores into the run's summary."""
        self._run.summary.update(dict(results))

    @_not_fatal
    def finish(self, failed: bool) -> None:
        self._run.finish(exit_code=1 if failed else 0)
        if self._upload:
            log.info("wandb: this run is offline; once logged in, upload with: %s", self._upload)
        if self._sets_data_dir:
            os.environ.pop(DATA_DIR, None)


def point_of(folder: Path) -> tuple[str | None, str]:
    """Name of the sweep that a run's folder is part of, and the run's point in words; None and "" outside a sweep."""
    plan = read_plan(folder.parent)
    points = {} if plan is None else {run.run: run.point for run in plan.runs}
    if folder.name not in points:
        return None, ""
    point = points[folder.name]
    return folder.resolve().parent.name, " ".join(f"{k.rpartition('.')[2]}={v}" for k, v in point.items())


def sample(predictions: Sequence[Prediction], count: int) -> list[Prediction]:
    """``count`` predictions, taken from the splits in turn."""
    by_split: dict[str, list[Prediction]] = {}
    for prediction in predictions:
        by_split.setdefault(prediction.split, []).append(prediction)
    turns = itertools.zip_longest(*by_split.values())
    return [p for turn in turns for p in turn if p is not None][:count]


def picture(prediction: Prediction, data: MMTDataModule) -> Image.Image | None:
    """The picture of a row, the frames of its video side by side, or None for text and for unreadable media."""
    if prediction.raw is None or not prediction.media_path:
        return None
    modality, config = data.dataset.table.tasks[prediction.split].modality, data.config
    try:
        path = media_file(data.dataset.root, prediction.media_path, prediction.id)
        if modality == "image":
            return load_image(path, prediction.id, config.bounds)
        if modality == "video":
            return side_by_side(load_video(path, FRAMES, config.video_backend, prediction.id, config.bounds))
    except MediaError as error:
        log.warning("not shown: %s", error)
    return None


def resolve_mode(mode: str) -> Any:
    """``auto`` becomes WANDB_MODE where that is set, else online where somebody is logged in, else offline.

    Somebody who is logged in on a machine that cannot reach the server is told so, and offline.
    """
    if mode != "auto":
        return mode
    if mode_of_environment := os.environ.get("WANDB_MODE"):
        return mode_of_environment
    try:
        return "online" if wandb.login(prompt=False) else "offline"
    except wandb.errors.Error as error:
        log.warning("wandb: %s; offline instead (logger.wandb.mode=offline does not ask)", first_line(error))
        return "offline"


def run_id(folder: Path) -> str:
    """The id of the folder's one W&B run, whatever its restarts; drawn at the first start and kept in the folder."""
    path = folder / ID_FILE
    known = path.read_text(encoding="utf-8", errors="replace").strip() if path.is_file() else ""
    if not re.fullmatch(r"[a-z0-9]{8}", known):
        known = "".join(secrets.choice(string.ascii_lowercase + string.digits) for _ in range(8))
        write_text(path, known + "\n")
    return known


def side_by_side(frames: np.ndarray) -> Image.Image:
    """Frames (T, H, W, 3) uint8 of a video as one picture, T frames wide."""
    return Image.fromarray(np.concatenate(list(frames), axis=1))
