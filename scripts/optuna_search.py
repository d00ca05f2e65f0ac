"""Search with Optuna over a space of experiments/spaces: python scripts/optuna_search.py lime_lora --trials 30

Overrides of train.py may follow (key=value). The same command goes on where it stopped; several processes may run it
at once. Needs `pip install 'lime-moe[optuna]'`.
"""

from __future__ import annotations

import importlib.util
import shlex
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from lime.config.scripts import errors_in_one_line, parse_mixed, run_script, script_parser, show_log  # noqa: E402
from lime.system.printing import print  # noqa: E402


@errors_in_one_line()
def main(arguments: list[str]) -> int:
    parser = script_parser(__doc__, overwrite=None)
    parser.add_argument("space", help="name of a space in experiments/spaces, or a file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="overrides of train.py for every trial")
    parser.add_argument("--trials", type=int, default=20, help="trials in all, earlier ones included (default 20)")
    parser.add_argument("--name", help="name of the search and of its folder (default: search_SPACE)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the sampler (default 0)")
    options = parse_mixed(parser, arguments)
    if importlib.util.find_spec("optuna") is None:
        raise ValueError("needs Optuna: pip install 'lime-moe[optuna]'")
    from lime.experiments.optuna_search import Search, read_space

    show_log()
    path = Path(options.space)
    path = path if path.suffix == ".yaml" else ROOT / "experiments" / "spaces" / f"{options.space}.yaml"
    search = Search(options.name or f"search_{path.stem}", read_space(path), options.overrides, ROOT, options.seed)
    search.run(options.trials)
    trials = search.ended()
    values = [trial for trial in trials if trial.value is not None]
    print(f"{len(trials)} trials, {len(trials) - len(values)} without a result")
    if not values:
        return 2
    best = search.study.best_trial
    print(f"best: trial {best.number}, {best.value:.4f}, {search.folder / best.user_attrs['run']}")
    print("python train.py " + shlex.join(search.overrides(best.params)))
    return 0


if __name__ == "__main__":
    run_script(main)
