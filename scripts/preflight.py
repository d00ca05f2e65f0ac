"""Will it fit, and how long will it take? Before a run, without a step: python scripts/preflight.py [KEY=VALUE …]

Takes every option of train.py: resolves the configuration, loads model and data, counts parameters, tries batches of
training, of the frozen backbone's answers and of the evaluation, and predicts peak memory and time of each.
python scripts/preflight.py --json FILE … writes all of it, with --overwrite whatever FILE is.
Exit code 1 where it does not fit.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from lime.config.schema import TrainConfig  # noqa: E402
from lime.config.scripts import errors_in_one_line, folded, run_script, show_log  # noqa: E402
from lime.jobs.compose import composed  # noqa: E402
from lime.system.ownership import check_output  # noqa: E402
from lime.system.printing import print  # noqa: E402

DOES_NOT_FIT = 1


@errors_in_one_line()
def main(arguments: list[str]) -> int:
    if any(flag in arguments for flag in ("-h", "--help")):
        print(folded(__doc__))
        return 0
    target: Path | None = None
    if "--json" in arguments:
        at = arguments.index("--json")
        if at + 1 == len(arguments):
            raise ValueError("--json: expected a file after it")
        target, arguments = Path(arguments[at + 1]), arguments[:at] + arguments[at + 2 :]
    overwrite = "--overwrite" in arguments
    arguments = [text for text in arguments if text != "--overwrite"]
    show_log()
    if target is not None:
        check_output(target, overwrite=overwrite)
    return _try(composed(arguments, ROOT / "conf", "train", TrainConfig), target)


def _try(config: TrainConfig, target: Path | None) -> int:
    import lime
    from lime.distributed.devices import device_of
    from lime.inference.frozen import asks_frozen
    from lime.inference.rows import TestRows
    from lime.jobs.setup import media_errors_as_input_errors, open_data, prepare_process
    from lime.models.loading import load_backbone
    from lime.system.atomic import write_json
    from lime.training.fit import checkpoint_activations
    from lime.training.preflight.plan import preflight_of_run

    with media_errors_as_input_errors():
        prepare_process(config.seed, config.trainer.num_threads)
        device = device_of(config.trainer.accelerator, config.trainer.devices)
        backbone = load_backbone(config.model)
        data = open_data(config, backbone, config.trainer.batch_size)
        data.setup("fit")
        backbone.model.to(device)
        model = lime.apply(backbone.model, config.settings())[0]  # logs what it adapts
        lime.tuner.calibrate(model, data.sample_batches())
        if config.trainer.gradient_checkpointing:
            checkpoint_activations(model)
        tests = (
            TestRows(data, config.evaluation.splits, config.evaluation.metrics)
            if config.evaluation.mode != "none"
            else None
        )
        to_ask = tests is not None and asks_frozen(backbone, data, tests, config)
        found = preflight_of_run(config, model, data, device, tests=tests, answers_frozen=to_ask)
    if found is None:
        return 0
    if target is not None:
        write_json(target, {"schema": "lime-preflight/1", **found.to_dict()})
    return 0 if found.fits else DOES_NOT_FIT


if __name__ == "__main__":
    run_script(main)
