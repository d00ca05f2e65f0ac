"""Adapters to share: a folder with a model card, ready for the hub, and back by path or hub name."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from lime.config.reuse import RUN_FILE, read_run
from lime.data.config import OWN
from lime.data.tasks import TaskTable, table_of
from lime.method.deltas.table import is_lime
from lime.runs.adapter import ADAPTER_FILES
from lime.system.atomic import replacing_folder
from lime.system.ownership import check_replaceable

log = logging.getLogger(__name__)

KIND = "exported adapter"

CARD = """---
library_name: peft
base_model: {base}
tags: [{tags}]
license: {licence}
---

# {title}

{what}

```python
import lime

model, report = lime.load(base_model, "FOLDER OF THIS ADAPTER")
```

or, to evaluate it: `python eval.py adapter=FOLDER_OR_HUB_NAME`, with the options that name backbone and data.

- **Base**: `{base}`, revision {revision}, fingerprint `{fingerprint}`
- **Data**: {data}, fingerprint `{data_fingerprint}`
- **Seed**: {seed}; **code**: {commit}
- **Versions**: {versions}

## Results

{results}

## Settings

```yaml
{settings}
```

## Licences

{licences}
"""


def export_adapter(
    run: Path, out: Path, *, licence: str = "other", title: str | None = None, overwrite: bool = False
) -> Path:
    """Write a run's adapter with a model card into ``out``, in place of an earlier export.

    Folders of this machine in the settings are left out.

    Args:
        run: folder of a finished run of train.py.
        out: the folder to write.
        licence: the hub's name of a licence, yours to choose; those of data and backbone are listed in the card.
        title: heading of the card; the run's name where absent.
        overwrite: replace whatever is in ``out``.

    Raises:
        ValueError: no finished run there, or ``out`` is the run or its adapter.
        FileExistsError: ``out`` holds something that no export wrote, or that was changed since.
    """
    source = run / "adapter"
    lacking = [name for name in (*ADAPTER_FILES, RUN_FILE) if not (source / name).is_file()]
    if lacking:
        raise ValueError(f"{source}: no {', '.join(lacking)}; expected the folder of a finished run of train.py")
    target = Path(os.path.realpath(out))
    if target.is_relative_to(os.path.realpath(source)) or Path(os.path.realpath(source)).is_relative_to(target):
        raise ValueError(f"{out}: is or holds the run's own adapter {source}; take another folder")
    check_replaceable(out, KIND, overwrite=overwrite)
    content = read_run(source)
    config, backbone = _without_places(content["config"]), content["backbone"]
    with replacing_folder(out, KIND, overwrite=overwrite) as temporary:
        for name in ADAPTER_FILES:
            shutil.copy(source / name, temporary / name)
        described = json.loads((temporary / ADAPTER_FILES[0]).read_text(encoding="utf-8"))
        described["base_model_name_or_path"] = config["model"]["path"] or config["model"]["name"]
        (temporary / ADAPTER_FILES[0]).write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
        text = yaml.safe_dump({"config": config, "backbone": backbone}, sort_keys=False, allow_unicode=True)
        (temporary / RUN_FILE).write_text(text, encoding="utf-8")
        card = model_card(run, config, backbone, licence=licence, title=title)
        (temporary / "README.md").write_text(card, encoding="utf-8")
    return out


def model_card(
    run: Path, config: Mapping[str, Any], backbone: Mapping[str, Any], *, licence: str, title: str | None
) -> str:
    """The card of a run's adapter, from what the run recorded."""
    environment = run / "environment.json"
    info = json.loads(environment.read_text(encoding="utf-8")) if environment.is_file() else {}
    results = run / "results.md"
    shown = {section: config[section] for section in ("peft", "lime", "optim", "trainer", "data", "evaluation")}
    versions = {name: value for name, value in info.get("versions", {}).items() if value}
    return CARD.format(
        title=title or config["name"],
        base=config["model"]["path"] or config["model"]["name"],
        licence=licence,
        tags=", ".join(["lime", "peft", *["mixture-of-experts"] * config["lime"]["enabled"], "vision-language"]),
        what=_what(config),
        revision=backbone.get("revision") or "not from the hub",
        fingerprint=backbone["fingerprint"][:16],
        data=_data(config["data"]["name"], table_of(run)),
        data_fingerprint=info.get("data_fingerprint", "unknown")[:16],
        seed=config["seed"],
        commit=(info.get("commit") or {}).get("id") or "unknown commit",
        versions=", ".join(f"{name} {value}" for name, value in versions.items()) or "unknown",
        results=results.read_text(encoding="utf-8") if results.is_file() else "Not evaluated.",
        settings=yaml.safe_dump(shown, sort_keys=False, allow_unicode=True).rstrip(),
        licences=_licences(str(config["data"]["name"])),
    )


def _what(config: Mapping[str, Any]) -> str:
    """What was trained, in a sentence: LiME over an update, a mixture of experts, or an update alone."""
    lime, peft, base = config["lime"], config["peft"], config["model"]["path"] or config["model"]["name"]
    kind, experts = peft["base"] if peft["type"] == "any" else peft["type"], lime["num_experts"]
    head = f"`{config['method']}` for `{base}`:"
    if lime["enabled"] and not is_lime(config["method"]):
        return f"{head} a mixture of {experts} experts with a learned router, a baseline without LiME."
    if not lime["enabled"]:
        return f"{head} a plain {kind} adapter, without experts or routing, a baseline without LiME."
    routing = "zero-parameter routing" if lime["router"] == "zero" else "a learned router"
    return f"A LiME adapter, {head} one shared {kind} update, {experts} expert modulators, {routing}."


def _data(name: str, table: TaskTable) -> str:
    """The data set, and its tasks where they are not MMT-47's."""
    tasks = [task.name for task in table.tasks.values()]
    return name if table.is_mmt47 else f"{name} ({len(tasks)} task{'s' * (len(tasks) > 1)}: {', '.join(tasks)})"


def _without_places(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration without folders of this machine."""
    data, model = dict(config["data"]), dict(config["model"])
    if data["root"] and Path(data["root"]).is_absolute():
        data["root"] = None
    if model["path"] and (Path(model["path"]).is_absolute() or Path(model["path"]).exists()):
        model["path"] = None
    if isinstance(data.get("frame_cache"), dict):
        data["frame_cache"] = {**data["frame_cache"], "dir": None}
    return {**config, "data": data, "model": model, "ckpt_path": None, "cache_dir": None}


def _licences(data: str) -> str:
    if data == "mmt47_mini":
        return (
            "The training data are procedural and come with the code (Apache-2.0). The backbone's licence applies too."
        )
    if data == OWN:
        return "The backbone's licence applies, and the terms of the rows, which are the publisher's to name."
    return (
        "The backbone's licence applies, and the terms of the data. Whose rows these are, a run does not record: rows "
        "of one's own carry their own terms; for those of MMT-47 as published, the terms of each of its sources apply, "
        "which `python scripts/data.py download FOLDER` lists before it fetches anything."
    )
