"""A workspace and a report on Weights & Biases: python scripts/wandb_dashboard.py [--project lime] [--experiment NAME]

Runs by method, categories, routing, efficiency and predictions. Saving needs a login; --dry-run FILE writes what would
be made as JSON. Needs `pip install 'lime-moe[dashboard]'`.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lime.config.scripts import run_script
from lime.system.printing import print


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--project", default="lime", help="project of the runs (default: lime)")
    parser.add_argument("--entity", help="team or user (default: that of the login)")
    parser.add_argument("--experiment", metavar="NAME", help="a report about one sweep, by its name")
    parser.add_argument("--dry-run", type=Path, metavar="FILE", help="write the specification, save nothing")
    parser.add_argument("--overwrite", action="store_true", help="replace files that this program did not write")
    options = parser.parse_args(arguments)
    if importlib.util.find_spec("wandb_workspaces") is None:
        return _error("needs the library of W&B's workspaces: pip install 'lime-moe[dashboard]'")
    from lime.integrations import wandb_dashboard as made
    from lime.system.atomic import write_text
    from lime.system.ownership import check_output

    if options.dry_run is not None:
        entity = options.entity or "ENTITY"
        pages = [made.workspace(entity, options.project), made.report(entity, options.project, options.experiment)]
        text = json.dumps([made.spec(page) for page in pages], indent=1, ensure_ascii=False) + "\n"
        try:
            check_output(options.dry_run, overwrite=options.overwrite)
            write_text(options.dry_run, text)
        except OSError as error:
            return _error(str(error))
        print(options.dry_run)
        return 0

    import requests
    import wandb

    if os.environ.get("WANDB_MODE") in ("offline", "disabled") or not wandb.login(prompt=False):
        return _error(
            "nobody is logged in, or WANDB_MODE is offline: a dashboard is saved online. `wandb login` first, upload "
            "the runs (wandb sync), then try again; --dry-run FILE needs no login"
        )
    try:
        entity = options.entity or wandb.Api().default_entity
        for page in (
            made.workspace(entity, options.project),
            made.report(entity, options.project, options.experiment),
        ):
            print(page.save().url)
    except (wandb.errors.Error, requests.RequestException, ValueError) as error:
        return _error(f"W&B did not take it: {error}")
    return 0


def _error(text: str) -> int:
    print(f"error: {text}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    run_script(main)
