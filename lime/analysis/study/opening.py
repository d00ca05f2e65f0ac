"""A run's adapter on its own backbone, and the test rows to look at."""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

import lime.tuner
from lime.config.reuse import is_own_run, read_run, with_run_config
from lime.config.schema import EvalConfig
from lime.data.config import DataConfig
from lime.data.datamodule import MMTDataModule
from lime.data.rows import Row
from lime.distributed.devices import device_of
from lime.inference.evaluation import TestRows
from lime.jobs.setup import open_data
from lime.models.loading import load_backbone
from lime.processors.config import EMBEDDED, ModelConfig
from lime.runs.adapter import check_backbone

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SavedRun:
    """An adapter folder and what its run.yaml says."""

    adapter: Path
    config: dict[str, Any]
    backbone: dict[str, str]

    @property
    def name(self) -> str:
        """Name of the run's folder."""
        return self.adapter.parent.name

    @property
    def method(self) -> str:
        return str(self.config.get("method", "unknown"))

    @property
    def described(self) -> dict[str, Any]:
        """What a record says of the run."""
        section = self.config.get("lime", {})
        return {
            "run": self.name,
            "method": self.method,
            "seed": self.config.get("seed"),
            "num_experts": section.get("num_experts") if section.get("enabled") else None,
            "rank": self.config.get("peft", {}).get("r"),
            "backbone": self.backbone["name"],
        }


def saved_run(folder: Path) -> SavedRun:
    """The run in a folder, given as the run's or as its adapter's.

    Raises:
        ValueError: no such folder, or one without a saved adapter.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; expected that of a run of train.py")
    adapter = folder if (folder / "adapter_config.json").is_file() else folder / "adapter"
    if not (adapter / "adapter_config.json").is_file():
        raise ValueError(
            f"{folder}: holds no adapter; expected the folder of a finished run of train.py (one that failed, was "
            "interrupted or is still training has none)"
        )
    content = read_run(adapter.resolve())
    return SavedRun(adapter.resolve(), content["config"], content["backbone"])


def check_same_backbone(run: SavedRun, other: SavedRun) -> None:
    """Raises ValueError where two runs adapted different backbones."""
    if run.backbone["fingerprint"] != other.backbone["fingerprint"]:
        raise ValueError(
            f"{other.name} adapted {other.backbone['name']} ({other.backbone['fingerprint'][:12]}), {run.name} adapted "
            f"{run.backbone['name']} ({run.backbone['fingerprint'][:12]}): compare runs on one backbone"
        )


@dataclass(frozen=True)
class Choice:
    """Test rows to look at: ``rows`` of each split, chosen by a hash of their content; ``splits`` None for all.
    ``data_root`` in place of the run's own."""

    rows: int
    splits: tuple[str, ...] | None = None
    data_root: Path | None = None

    def __post_init__(self) -> None:
        if self.rows < 3:
            raise ValueError(
                f"rows: expected at least 3 of each task (probes are tested on rows they did not see), got {self.rows}"
            )


@dataclass
class Opened:
    """A run's model with its adapter, on its device, the data that its processor reads, and the chosen test rows."""

    run: SavedRun
    model: nn.Module
    data: MMTDataModule
    rows: list[Row]


def load_run(run: SavedRun, choice: Choice) -> Opened:
    """Load the backbone and the adapter of a run, and open its data.

    Raises:
        ValueError, OSError: another backbone than the adapter's, missing data or a split that is not there; the
            message says what to do.
    """
    changed: dict[str, Any] = {"rows_per_split": choice.rows}
    if choice.data_root is not None:
        changed["root"] = str(choice.data_root)
    config = _own_settings(run, changed) if is_own_run(run.adapter) else _settings_of_another(run, changed)
    config = dataclasses.replace(config, adapter=str(run.adapter))
    backbone = load_backbone(config.model)
    check_backbone(str(run.adapter), run.backbone, backbone)
    if config.model.device_map is None:
        backbone.model.to(device_of("auto"))  # type: ignore[arg-type]
    data = open_data(config, backbone, batch_size=1)
    model = lime.tuner.load(backbone.model, run.adapter)[0]
    if config.model.device_map is None:
        model.to(next(backbone.model.parameters()).device)
    return Opened(run, model, data, TestRows(data, choice.splits).rows)


def _own_settings(run: SavedRun, changed: dict[str, Any]) -> EvalConfig:
    sections = {"model": run.config["model"], "data": run.config["data"] | changed, "seed": run.config["seed"]}
    return with_run_config(EvalConfig(), sections, [], own=True)


def _settings_of_another(run: SavedRun, changed: dict[str, Any]) -> EvalConfig:
    """An embedded backbone and the named data alone: a stranger's run does not say what is fetched or read."""
    name = run.backbone["name"]
    if name not in EMBEDDED or changed.get("root") is None:
        raise ValueError(
            f"{run.adapter} is not marked as of a run of yours, so that its settings do not say which model and data "
            f"are opened: expected an adapter of {' or '.join(EMBEDDED)}, and the data by --data-root"
        )
    base = EvalConfig(model=ModelConfig(name=name, family=EMBEDDED[name]))
    data = DataConfig(**{"name": "mmt47", **changed})
    return with_run_config(dataclasses.replace(base, data=data), run.config, [], own=False)
