"""What train.py and eval.py do first: threads, seeds, device, data."""

from __future__ import annotations

import logging
import os
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import datasets
import numpy as np
import torch
import transformers

from lime.config.schema import EvalConfig, TrainConfig
from lime.data.datamodule import MMTDataModule
from lime.data.media import MediaError
from lime.models.loading import Backbone

log = logging.getLogger(__name__)


def prepare_process(seed: int, num_threads: int | None = None) -> None:
    """Seed Python, NumPy and torch, set the number of CPU threads, and quieten libraries."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  # libraries that use the global generator
    torch.manual_seed(seed)
    if num_threads is not None:
        torch.set_num_threads(num_threads)
    for name in ("lightning.pytorch", "httpx", "datasets", "fsspec", "matplotlib"):
        logging.getLogger(name).setLevel(logging.WARNING)
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message="The dirpath has changed")  # a resumed run has its own folder
    warnings.filterwarnings("ignore", message=".*You have overridden `on_before_batch_transfer`.*")
    warnings.filterwarnings("ignore", message=".*`is_gradient_checkpointing` is deprecated.*")
    warnings.filterwarnings("ignore", message=".*`isinstance\\(treespec, LeafSpec\\)` is deprecated.*")


def device_of(accelerator: str) -> torch.device:
    """The device that ``trainer.accelerator`` names.

    Raises:
        ValueError: ``gpu`` where there is none.
    """
    if accelerator == "gpu" and not torch.cuda.is_available():
        raise ValueError("trainer.accelerator: gpu was asked for, but torch sees none; take auto or cpu")
    use_gpu = accelerator != "cpu" and torch.cuda.is_available()
    return torch.device("cuda" if use_gpu else "cpu")


def open_data(config: TrainConfig | EvalConfig, backbone: Backbone, batch_size: int) -> MMTDataModule:
    """The data module of a run; the embedded benchmark is generated first where it is not there yet."""
    data = config.data
    assert data.root is not None
    if data.name == "mmt47_mini":
        from lime.data.mini import ensure

        mini = data.mini
        ensure(
            Path(data.root),
            seed=mini.seed,
            train_per_task=mini.train_per_task,
            test_per_task=mini.test_per_task,
            workers=mini.workers,
        )
    return MMTDataModule(
        data,
        batch_size=batch_size,
        eval_batch_size=config.evaluation.batch_size,
        seed=config.seed,
        processor=backbone.processor,
        family=backbone.family,
    )


@contextmanager
def media_errors_as_input_errors() -> Iterator[None]:
    """Damaged media are the user's to mend: a ValueError with the same message, also from a worker process."""
    try:
        yield
    except MediaError as error:
        raise ValueError(str(error)) from error
    except RuntimeError as error:
        # A worker's exception arrives as text, its own message in the last line.
        if f"Caught {MediaError.__name__}" not in str(error):
            raise
        raise ValueError(str(error).strip().splitlines()[-1].partition("MediaError: ")[2]) from error
