"""The folder of a trained adapter: here, or on the hub."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from lime.config.adapters import hub_name
from lime.config.reuse import RUN_FILE
from lime.models.loading import Backbone
from lime.runs.record import RECORD_FILE, read_record
from lime.system.ownership import MARKER

log = logging.getLogger(__name__)


ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


def adapter_folder(name: str) -> Path:
    """The folder of an adapter: a local one as it is; ORG/NAME[@REVISION] is fetched from the hub, or taken from its
    cache.

    Raises:
        FileNotFoundError: it is neither here nor reachable.
    """
    on_hub = hub_name(name)
    if on_hub is None:
        if not Path(name).is_dir():
            raise FileNotFoundError(f"adapter: {name}: no such folder; expected the folder 'adapter' of a run")
        return Path(name)
    repository, revision = on_hub
    try:
        folder = Path(
            snapshot_download(repository, revision=revision, allow_patterns=[*ADAPTER_FILES, RUN_FILE, MARKER])
        )
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        pinned = f" --revision {revision}" if revision else ""
        raise FileNotFoundError(
            f"adapter: {name} is neither a folder nor reachable on the hub or in its cache. On a machine with access: "
            f"`hf download {repository}{pinned} --local-dir FOLDER`, bring FOLDER here, and set adapter=FOLDER"
        ) from error
    if revision != folder.name:  # the snapshot's folder is named by its commit
        log.info("adapter=%s@%s repeats this evaluation, whatever is uploaded there later", repository, folder.name)
    return folder


def adapter_digest(adapter: Path) -> str:
    """SHA-256 over an adapter's files, as the record keeps it."""
    total = hashlib.sha256()
    for name in ("adapter_config.json", "adapter_model.safetensors", RUN_FILE):
        with (adapter / name).open("rb") as stream:
            total.update(hashlib.file_digest(stream, "sha256").digest())
    return total.hexdigest()


def check_recorded(adapter: Path) -> None:
    """Raise ValueError where an adapter in its run's folder is not the one that the run recorded."""
    path = adapter.parent / RECORD_FILE
    if adapter.name != "adapter" or not path.is_file():
        return
    recorded = read_record(path).adapter_sha256
    if recorded is not None and recorded != adapter_digest(adapter):
        raise ValueError(f"adapter: {adapter} is not the one that the run recorded (adapter_sha256 in {path})")


def shown(text: str) -> str:
    """A stranger's text for a terminal or a log: its first 60 characters, without control characters."""
    return repr(text[:60])[1:-1]


def check_backbone(adapter: str, saved: dict[str, str], backbone: Backbone) -> None:
    """Raise ValueError when an adapter belongs to another backbone."""
    if saved["fingerprint"] != backbone.fingerprint:
        raise ValueError(
            f"adapter: {adapter} was trained on {shown(saved['name'])} ({shown(saved['fingerprint'][:12])}), "
            f"this is {backbone.name} ({backbone.fingerprint[:12]}); evaluate it on its own backbone (model=NAME, "
            "or model.path)"
        )
