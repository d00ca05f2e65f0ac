"""A workspace and a report on Weights & Biases: python scripts/wandb_dashboard.py [--project lime] [--experiment NAME]

Runs by method, categories, routing, efficiency and predictions. Saving needs a login; --dry-run FILE writes what would
be made as JSON. Needs `pip install 'lime-moe[dashboard]'`.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lime.config.scripts import errors_in_one_line, run_script, script_parser
from lime.system.printing import print


@errors_in_one_line()
def main(arguments: list[str]) -> int:
    parser = script_parser(__doc__)
    parser.add_argument("--project", default="lime", help="project of the runs (default: lime)")
    parser.add_argument("--entity", help="team or user (default: that of the login)")
    parser.add_argument("--experiment", metavar="NAME", help="a report about one sweep, by its name")
    parser.add_argument("--run", type=Path, metavar="FOLDER", help="a run whose tasks are shown (default: MMT-47's)")
    parser.add_argument("--dry-run", type=Path, metavar="FILE", help="write the specification, save nothing")
    options = parser.parse_args(arguments)
    if importlib.util.find_spec("wandb_workspaces") is None:
        raise ValueError("needs the library of W&B's workspaces: pip install 'lime-moe[dashboard]'")
    from lime.data.tasks import mmt47, table_of
    from lime.integrations.wandb_dashboard import report, spec, workspace
    from lime.system.atomic import write_json
    from lime.system.ownership import check_output

    if options.run is not None and not options.run.is_dir():
        raise ValueError(f"--run: {options.run}: no such folder; expected that of a run")
    table = mmt47() if options.run is None else table_of(options.run)

    def pages(entity: str) -> list[Any]:
        project = options.project
        return [workspace(entity, project, table), report(entity, project, options.experiment, table)]

    if options.dry_run is not None:
        check_output(options.dry_run, overwrite=options.overwrite)
        specified = [spec(page) for page in pages(options.entity or "ENTITY")]
        write_json(options.dry_run, {"schema": "lime-dashboard/1", "pages": specified}, indent=1)
        print(options.dry_run)
        return 0

    import requests
    import wandb

    if os.environ.get("WANDB_MODE") in ("offline", "disabled") or not wandb.login(prompt=False):
        raise ValueError(
            "nobody is logged in, or WANDB_MODE is offline: a dashboard is saved online. `wandb login` first, upload "
            "the runs (wandb sync), then try again; --dry-run FILE needs no login"
        )
    try:
        for page in pages(options.entity or wandb.Api().default_entity):
            print(page.save().url)
    except (wandb.errors.Error, requests.RequestException, ValueError) as error:
        raise ValueError(f"W&B did not take it: {error}") from error
    return 0


if __name__ == "__main__":
    run_script(main)
