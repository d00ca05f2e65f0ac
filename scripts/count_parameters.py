"""Count what an experiment would train, from shapes alone: no weights are read.

python scripts/count_parameters.py model=llava_onevision method=lime_lora [peft.r=8] [lime.num_experts=6] …

Takes every option of train.py. Counts the scopes language model, vision tower and both, or peft.scope where that is
given.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from lime.config.schema import TrainConfig  # noqa: E402
from lime.config.scripts import errors_in_one_line, run_script  # noqa: E402
from lime.jobs.compose import composed  # noqa: E402
from lime.system.printing import print  # noqa: E402

if TYPE_CHECKING:
    from lime.tuner import ApplyReport, LimeSettings

SCOPES = ("language_model", "vision_tower", "both")


def configuration(overrides: list[str]) -> TrainConfig:
    """The checked configuration of train.py with these overrides."""
    return composed(overrides, ROOT / "conf", "train", TrainConfig)


def count(config: TrainConfig, scope: str) -> ApplyReport:
    """Adapt the backbone's shapes in a scope and report."""
    from dataclasses import replace

    import lime
    from lime.models.architectures import build_shapes

    path = config.model.path
    shapes = build_shapes(config.model.name, Path(path) if path and Path(path).is_dir() else None)
    return lime.apply(shapes, replace(config.settings(), scope=scope))[1]


def table(config: TrainConfig, reports: dict[str, ApplyReport]) -> str:
    """Layers and trainable parameters by scope."""
    settings = config.settings()
    experts = f", {settings.num_experts} experts" if settings.enabled else ""
    first = next(iter(reports.values()))
    lines = [
        f"{config.model.name}: {first.total_parameters - first.adapter_parameters:,} parameters",
        f"{config.method}: {_size(settings)}{experts}",
        "",
        f"{'scope':<16}{'layers':>8}{'trainable':>14}{'% of all':>10}",
    ]
    for scope, report in reports.items():
        share = 100 * report.trainable / report.total_parameters
        lines.append(f"{scope:<16}{report.layers:>8,}{report.trainable:>14,}{share:>10.4f}")
    return "\n".join(lines)


def _size(settings: LimeSettings) -> str:
    """What sets the size of the update."""
    if settings.peft == "prompt_tuning":
        return f"{settings.num_virtual_tokens} virtual tokens"
    if settings.peft == "any":
        options = ", ".join(f"{name} {value}" for name, value in (settings.base_options or {}).items())
        return f"{settings.base} of the peft library, {options or 'its defaults'}"
    return f"rank {settings.r}"


@errors_in_one_line()
def main(overrides: list[str]) -> int:
    if any(flag in overrides for flag in ("-h", "--help")):
        print(__doc__)
        return 0
    config = configuration(overrides)
    given = any(text.split("=")[0].lstrip("+") == "peft.scope" for text in overrides)
    settings = config.settings()
    scopes = (settings.scope,) if given or settings.peft == "prompt_tuning" else SCOPES
    print(table(config, {scope: count(config, scope) for scope in scopes}))
    return 0


if __name__ == "__main__":
    run_script(main)
