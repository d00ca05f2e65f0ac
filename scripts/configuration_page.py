"""Writes docs/configuration.md from the docstrings of the configuration: python scripts/configuration_page.py [FILE]"""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from lime.config.schema import EvalConfig, TrainConfig, settings_key  # noqa: E402
from lime.config.scripts import errors_in_one_line, run_script, script_parser  # noqa: E402
from lime.jobs.compose import composed  # noqa: E402
from lime.system.atomic import write_text  # noqa: E402
from lime.system.ownership import MADE_BY, check_output  # noqa: E402
from lime.system.printing import print  # noqa: E402
from lime.tuner.settings import LimeSettings  # noqa: E402

TARGET = ROOT / "docs" / "configuration.md"
INTRODUCTION = """# Every option

Written by `python scripts/configuration_page.py` from the docstrings of the configuration. Any key can be set on the
command line, `python train.py lime.num_experts=8`; a group of them by its name, `python train.py method=lora`.
Defaults are those of `python train.py` without options; `python train.py --cfg job` prints them with what you set,
`--help` the groups. What `eval.py` does not find on its command line it takes from the run.

The tab key completes groups, names and keys in Bash after this, once a terminal (fish: `install=fish`):

<!-- tested by: tests/config/test_configuration_page.py::test_the_tab_key_completes_names_and_keys -->
```bash
eval "$(python train.py --shell-completion install=bash)"
```
"""
HEADS = {
    "peft.": "The shared update, or a mixture of experts of another kind. docs/method.md has the equations.",
    "lime.": "Experts and routing. docs/method.md has the equations.",
}
ENTRY = re.compile(r"^ {4}(\w+): (.*?)(?=^ {4}\w|^$|\Z)", re.DOTALL | re.MULTILINE)
OF_EVAL = ("name", "seed", "adapter", "peft_module", "predictions", "devices", "cache_dir")


def described(schema: type) -> tuple[str, dict[str, str]]:
    """The first paragraph of a dataclass' docstring, and what it says of each attribute."""
    head, _, attributes = inspect.cleandoc(schema.__doc__ or "").partition("Attributes:\n")
    entries = {name: " ".join(said.split()).replace("``", "`") for name, said in ENTRY.findall(attributes)}
    return " ".join(head.split()).replace("``", "`"), entries


def section_of(hint: Any) -> type | None:
    """The dataclass that an annotation names, alone or beside None."""
    return next((part for part in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(part)), None)  # type: ignore[return-value]


def lines(schema: type, values: Any, prefix: str = "") -> Iterator[str]:
    """A dataclass as a table of its keys, and below it those of its sections."""
    hints, names = typing.get_type_hints(schema), {}
    head, said = described(schema)
    if prefix in ("peft.", "lime."):
        names = {settings_key(option).rpartition(".")[2]: text for option, text in described(LimeSettings)[1].items()}
        head = HEADS[prefix]
    if prefix:
        yield f"\n## {prefix[:-1]}\n\n{head}\n"
    yield "| key | default | |\n|---|---|---|"
    sections = {}
    for field in dataclasses.fields(schema):
        value = getattr(values, field.name)
        section = section_of(hints[field.name])
        if section is None or value is None:
            text = (said | names)[field.name].replace("|", "\\|")
            yield f"| `{prefix}{field.name}` | `{shown(value)}` | {choices(hints[field.name])}{text} |"
        if section is not None:
            sections[field.name] = (section, value if value is not None else section())
    for name, (section, value) in sections.items():
        yield from lines(section, value, f"{prefix}{name}.")


def shown(value: Any) -> str:
    """A value as on the command line."""
    return json.dumps(list(value) if isinstance(value, tuple) else value).strip('"')


def choices(hint: Any) -> str:
    """The words that an annotation allows."""
    if typing.get_origin(hint) is not typing.Literal:
        return ""
    return ", ".join(f"`{value}`" for value in typing.get_args(hint)) + "; "


def page() -> str:
    """docs/configuration.md"""
    train = "\n".join(lines(TrainConfig, composed([], ROOT / "conf", "train", TrainConfig)))
    said = described(EvalConfig)[1]
    defaults = EvalConfig()
    own = "\n".join(f"| `{key}` | `{shown(getattr(defaults, key))}` | {said[key]} |" for key in OF_EVAL)
    return (
        f"{INTRODUCTION}\n## train.py\n\n{train}\n\n## eval.py\n\nBeside the sections model, data and evaluation above:"
        f"\n\n| key | default | |\n|---|---|---|\n{own}\n\n<!-- {MADE_BY} -->\n"
    )


@errors_in_one_line()
def main(arguments: list[str]) -> int:
    parser = script_parser(__doc__)
    parser.add_argument("file", type=Path, nargs="?", default=TARGET, help="Markdown (default: docs/configuration.md)")
    options = parser.parse_args(arguments)
    check_output(options.file, overwrite=options.overwrite)
    write_text(options.file, page())
    print(f"wrote {options.file}")
    return 0


if __name__ == "__main__":
    run_script(main)
