"""What train.py and eval.py do first: threads, seeds, device, data."""

from __future__ import annotations

import dataclasses
import logging
import os
import random
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal

import datasets
import numpy as np
import torch
import transformers

from lime.config.check import ConfigError
from lime.config.schema import EvalConfig, TrainConfig
from lime.data.datamodule import MMTDataModule
from lime.data.media import MediaError
from lime.distributed import processes
from lime.models.loading import Backbone
from lime.processors.config import AUTOMATIC
from lime.runs.environment import environment
from lime.runs.folders import claim_run_folder
from lime.runs.lock import run_lock

log = logging.getLogger(__name__)


def prepare_process(seed: int, num_threads: int | None = None) -> None:
    """Seed Python, NumPy and torch, set the number of CPU threads, and quieten libraries.

    Several processes on one machine share its cores where ``num_threads`` is None.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  # libraries that use the global generator
    torch.manual_seed(seed)
    on_this_machine = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if num_threads is None and on_this_machine > 1:
        num_threads = max(1, torch.get_num_threads() // on_this_machine)
    if num_threads is not None:
        torch.set_num_threads(num_threads)
    if not processes.is_main():
        logging.getLogger().setLevel(logging.WARNING)
    quieten_hub()
    for name in ("lightning.pytorch", "httpx", "datasets", "fsspec", "matplotlib"):
        logging.getLogger(name).setLevel(logging.WARNING)
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*Checkpoint directory .* exists and is not empty.*")
    warnings.filterwarnings("ignore", message="The dirpath has changed")  # a resumed run has its own folder
    warnings.filterwarnings("ignore", message=".*You have overridden `on_before_batch_transfer`.*")
    warnings.filterwarnings("ignore", message=".*`is_gradient_checkpointing` is deprecated.*")
    warnings.filterwarnings("ignore", message=".*`isinstance\\(treespec, LeafSpec\\)` is deprecated.*")


def quieten_hub() -> None:
    """The hub's client logs each of its retries, with a handler of its own beside ours: only its errors are of use, and
    whoever asked says what could not be had."""
    client = logging.getLogger("huggingface_hub")
    client.setLevel(logging.ERROR)
    client.propagate = False


@contextmanager
def lock_of_run(folder: Path, kind: Literal["run", "evaluation"]) -> Iterator[None]:
    """The folder's lock, held by the main process for all of them, and its mark.

    Raises:
        BusyError, FileExistsError: in every process, where another run is at work there, or it is not a run's.
    """
    with ExitStack() as stack:
        refused = None
        if processes.is_main():
            try:
                stack.enter_context(run_lock(folder))
                claim_run_folder(folder, kind)
            except (ValueError, OSError) as error:
                refused = error
        refused = processes.from_main(refused)
        if refused is not None:
            raise refused
        yield


def open_data(config: TrainConfig | EvalConfig, backbone: Backbone, batch_size: int) -> MMTDataModule:
    """The data module of a run; the embedded benchmark is generated first where it is not there yet.

    Raises ConfigError for names in the section evaluation that its table of tasks does not have.

    Several processes, and models whose processor is not one of ours, train on batches alike in modality.
    """
    data = config.data
    assert data.root is not None
    if data.name == "mmt47_mini":
        from lime.embedded.benchmark import ensure

        mini = data.mini
        with processes.main_first():
            ensure(Path(data.root), **dataclasses.asdict(mini))
    module = MMTDataModule(
        data,
        batch_size=batch_size,
        eval_batch_size=config.evaluation.batch_size,
        seed=config.seed,
        processor=backbone.processor,
        family=backbone.family,
    )
    if isinstance(config, TrainConfig) and data.least_steps is not None:
        options = config.trainer
        each = batch_size * options.accumulate_grad_batches * processes.world_size()
        module.least_rows = -(-data.least_steps // options.max_epochs) * each
    if problems := config.evaluation.errors(module.dataset.table.known_names()):
        raise ConfigError(problems)
    module.one_modality = processes.world_size() > 1 or backbone.family == AUTOMATIC
    return module


def described(seed: int, backbone: Backbone, data: MMTDataModule, **more: Any) -> dict[str, Any]:
    """Versions, commit and hardware, what else is given, and the fingerprints of data and backbone."""
    model = {key: getattr(backbone, key) for key in ("name", "fingerprint", "processing", "revision")}
    return environment(seed) | more | {"data_fingerprint": data.dataset.fingerprint, "backbone": model}


@contextmanager
def media_errors_as_input_errors() -> Iterator[None]:
    """Turns a MediaError, also one from a worker process, into a ValueError with the same message."""
    try:
        yield
    except MediaError as error:
        raise ValueError(str(error)) from error
    except RuntimeError as error:
        # A worker's exception arrives as text, its own message in the last line.
        if f"Caught {MediaError.__name__}" not in str(error):
            raise
        raise ValueError(str(error).strip().splitlines()[-1].partition("MediaError: ")[2]) from error
