"""Classes of a user's own module, for callbacks.extra and logger.extra."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.callbacks import Callback


class Counting(Callback):
    """Counts optimiser steps over restarts, and logs the count."""

    def __init__(self, start: int = 0):
        self.count = start

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self.count += 1
        pl_module.log("counted", float(self.count))

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.count = state_dict["count"]


class Notes:
    """A logger that is no class of Lightning's."""

    def __init__(self, path: str):
        self.path = path

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        with open(self.path, "a", encoding="utf-8") as file:  # noqa: PTH123
            file.writelines(f"{step} {key} {value}\n" for key, value in metrics.items())


class Broken:
    """A logger that always fails."""

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        raise RuntimeError("the server is gone")
