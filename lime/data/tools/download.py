"""Fetching MMT-47 from the hub into a data root: resumable, disk space checked first, licences accepted by name."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub import DryRunFileInfo
from huggingface_hub.errors import DryRunError, HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

from lime.data.tools.archives import is_archive
from lime.data.tools.sources import SOURCES, Source, licences

log = logging.getLogger(__name__)

_UNPACKED = 1.15  # of an archive's size; pictures and clips hardly compress
_SPARE = 2**30


def download(
    root: str | Path,
    *,
    accept_licences: bool,
    parts: Sequence[str] = tuple(SOURCES),
    revisions: dict[str, str] | None = None,
) -> dict[str, str]:
    """Fetches `parts` (rows, images, videos) into `root`; what is there whole is not fetched again.

    An interrupted download goes on when it is run again: files that are whole are kept, those that were under way begin
    anew. `revisions` {part: commit, tag or branch} pins what is fetched. Returns {part: commit that was fetched}.

    Raises:
        ValueError: licences not accepted, or an unknown part.
        OSError: not enough disk space for the files and what is unpacked from them.
        ConnectionError: the hub cannot be reached, with what to fetch elsewhere and where to put it.
    """
    unknown = [part for part in parts if part not in SOURCES]
    if unknown:
        raise ValueError(f"--parts: expected any of {', '.join(SOURCES)}, got {', '.join(unknown)}")
    if not accept_licences:
        raise ValueError(f"{licences()}\nRead them, then say --accept-licences; nothing was fetched")
    root = Path(root)
    chosen = [SOURCES[part] for part in parts]
    at = {part: (revisions or {}).get(part) for part in parts}
    try:
        plans = {source.name: _plan(root, source, at[source.name]) for source in chosen}
        check_space(root, [file for plan in plans.values() for file in plan])
        for source in chosen:
            log.info("fetching %s of %s into %s", source.name, source.repository, root)
            _snapshot(root, source, at[source.name])
    except (DryRunError, HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, ConnectionError) as error:
        raise ConnectionError(instructions(root, chosen, error)) from error
    return {part: next((file.commit_hash for file in plan), "") for part, plan in plans.items()}


def check_space(root: Path, files: Sequence[DryRunFileInfo]) -> None:
    """OSError where what is still to fetch, and what archives unpack to, does not fit on the disk of `root`."""
    fetch = sum(file.file_size or 0 for file in files if file.will_download)
    unpack = sum(_UNPACKED * (file.file_size or 0) for file in files if is_archive(Path(file.filename)))
    there = next(path for path in (root.absolute(), *root.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(there).free
    log.info("to fetch: %.1f GB; unpacked: %.1f GB; free: %.1f GB", fetch / 1e9, unpack / 1e9, free / 1e9)
    if fetch + unpack + _SPARE > free:
        raise OSError(
            f"{root}: {fetch / 1e9:.1f} GB to fetch and about {unpack / 1e9:.1f} GB to unpack, with 1 GB to spare, do "
            f"not fit in the {free / 1e9:.1f} GB left; make room, name another folder, or fetch less (--parts)"
        )


def instructions(root: Path, sources: Sequence[Source], error: Exception) -> str:
    """What to fetch where there is a network, and where to put it."""
    commands = "\n".join(
        f"  hf download {source.repository} --repo-type dataset --local-dir FOLDER "
        + " ".join(f"--include '{pattern}'" for pattern in source.patterns)
        for source in sources
    )
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return (
        f"the hub cannot be reached ({reason}). On a machine with access:\n{commands}\n"
        f"Bring FOLDER here as {root}, then run `python scripts/data.py prepare {root}`. It then holds\n"
        "  data/*.parquet (or MMT_47/, written by save_to_disk)   the rows\n"
        "  images/*.zip                                           pictures\n"
        "  video/*.zip                                            clips\n"
        "A mirror is named by the environment variable HF_ENDPOINT; an access token by HF_TOKEN"
    )


def _plan(root: Path, source: Source, revision: str | None) -> list[DryRunFileInfo]:
    plan = _snapshot(root, source, revision, dry_run=True)
    if not plan:
        raise ValueError(
            f"{source.repository}: no file matches {', '.join(source.patterns)}; its layout changed: look at "
            f"https://huggingface.co/datasets/{source.repository}/tree/main"
        )
    return plan


def _snapshot(root: Path, source: Source, revision: str | None, dry_run: bool = False) -> Any:
    return huggingface_hub.snapshot_download(
        source.repository,
        repo_type="dataset",
        revision=revision,
        local_dir=root,
        allow_patterns=source.patterns,
        dry_run=dry_run,
    )
