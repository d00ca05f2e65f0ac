"""The folder of a trained adapter: here, or on the hub."""

from __future__ import annotations

import logging
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from lime.config.adapters import hub_name
from lime.config.reuse import RUN_FILE
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
