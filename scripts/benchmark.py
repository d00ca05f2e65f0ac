"""Measure what things cost: python scripts/benchmark.py COMMAND [--option value …]

Commands are listed by --help, their options by COMMAND --help. Prints a Markdown table; --output FILE.json keeps the
record, with the table beside it, and for efficiency the figure (PNG and PDF).
"""

from __future__ import annotations

import argparse
import sys
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from lime.analysis.benchmark import COMMANDS  # noqa: E402
from lime.config.scripts import errors_in_one_line, folded, run_script, script_parser  # noqa: E402
from lime.system.printing import print  # noqa: E402


@errors_in_one_line()
def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="benchmark.py", description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help="one of the commands below")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = folded("\n".join(["commands:", *(f"  {name:<12}{text}" for name, text in COMMANDS.items())]))
    command = parser.parse_args(arguments[:1]).command  # nothing is imported for the list of commands

    from lime.analysis.benchmark.options import add_arguments, parse
    from lime.analysis.benchmark.record import markdown, save
    from lime.experiments.figures.style import save_figure
    from lime.system.ownership import check_output

    module = import_module(f"lime.analysis.benchmark.{command}")
    parser = script_parser(COMMANDS[command])
    parser.prog = f"benchmark.py {command}"
    add_arguments(parser, module.Options)
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="keep the record here, the table beside it")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: all cores)")
    values = vars(parser.parse_args(arguments[1:]))
    output, threads, overwrite = (values.pop(name) for name in ("output", "threads", "overwrite"))
    for suffix in (".json", ".md", ".png", ".pdf") if output is not None else ():
        check_output(output if suffix == ".json" else output.with_suffix(suffix), overwrite=overwrite)
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    content = module.run(parse(module.Options, values))
    if output is not None:
        figure = module.figure(content) if hasattr(module, "figure") else None
        save(content, output)
        for kind in (".png", ".pdf") if figure is not None else ():
            save_figure(figure, output.with_suffix(kind), dpi=200)
    print(markdown(content))
    return 0


if __name__ == "__main__":
    run_script(main)
