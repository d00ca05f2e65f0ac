"""Count what an experiment would train, from shapes alone: no weights are read.

python scripts/count_parameters.py model=llava_onevision method=lime_lora [peft.r=8] [lime.num_experts=6] …

Takes every option of train.py. Counts the scopes language model, vision tower and both, or peft.scope where that is
given. Below stands an estimate of memory and time, by arithmetic alone; scripts/preflight.py tries batches instead.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from lime.config.schema import TrainConfig  # noqa: E402
from lime.config.scripts import errors_in_one_line, folded, run_script  # noqa: E402
from lime.jobs.compose import composed  # noqa: E402
from lime.system.printing import print  # noqa: E402

if TYPE_CHECKING:
    from lime.tuner import ApplyReport, LimeSettings

TERA, SPEED = 1e12, 100  # operations per second, in units of the first
SCOPES = ("language_model", "vision_tower", "both")


def configuration(overrides: list[str]) -> TrainConfig:
    """The checked configuration of train.py with these overrides."""
    return composed(overrides, ROOT / "conf", "train", TrainConfig)


def count(config: TrainConfig, scope: str) -> ApplyReport:
    """Adapt the backbone's shapes in a scope and report."""
    from dataclasses import replace

    import lime

    return lime.apply(shapes_of(config), replace(config.settings(), scope=scope))[1]


def shapes_of(config: TrainConfig) -> Any:
    """The backbone without weights."""
    from lime.models.architectures import build_shapes

    path = config.model.path
    return build_shapes(config.model.name, Path(path) if path and Path(path).is_dir() else None)


def estimates(config: TrainConfig, made: ApplyReport, text: Any) -> str:
    """Memory and time of training the scope that ``made`` is of, by bytes and operations per parameter.

    Weights take 4 bytes in float32, else 2; a trainable parameter takes 16 (itself, its gradient and AdamW's two
    moments, in float32). A layer of width h keeps 34 h bytes for a token in 16 bits (Korthikanti et al., 2022, without
    the attention matrix), a vocabulary of V another 6 V for the logits. Forward and backward pass through a frozen
    backbone of N parameters are 4 N operations for a token.
    """
    rows, length = config.trainer.batch_size, config.data.max_length
    tokens = rows * length
    backbone = made.total_parameters - made.adapter_parameters
    width = 4 if config.model.dtype == "float32" else 2
    weights, adapters = backbone * width / 1e9, 16 * made.trainable / 1e9
    a_layer = 34 * text.hidden_size * text.num_hidden_layers
    if config.trainer.gradient_checkpointing:  # the inputs of all layers, and one layer whole
        a_layer = (2 * text.num_hidden_layers + 34) * text.hidden_size
    kept = tokens * (a_layer + 6 * text.vocab_size) / 1e9
    passes = 6 if config.trainer.gradient_checkpointing else 4
    hours = passes * backbone * length * 1000 / TERA / SPEED / 3600
    return (
        f"\nestimate, at most (rows of {length:,} tokens; nothing was run):\n"
        f"weights {weights:.1f} GB, adapters with AdamW {adapters:.2f} GB, activations of {rows} rows {kept:.1f} GB: "
        f"{weights + adapters + kept:.0f} GB\n"
        f"1,000 training rows: {60 * hours:.1f} min at {SPEED} TFLOP/s, a third of an A100's peak in 16 bits"
    )


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
        print(folded(__doc__))
        return 0
    config = configuration(overrides)
    given = any(text.split("=")[0].lstrip("+") == "peft.scope" for text in overrides)
    settings = config.settings()
    scopes = (settings.scope,) if given or settings.peft == "prompt_tuning" else SCOPES
    reports = {scope: count(config, scope) for scope in scopes}
    print(table(config, reports))
    print(estimates(config, next(iter(reports.values())), shapes_of(config).config.get_text_config()))
    return 0


if __name__ == "__main__":
    run_script(main)
