"""Every script shows its options, and what a user can fix is one line with the script's code, never a traceback."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest

from lime.config.scripts import errors_in_one_line, script_parser

SCRIPTS = sorted(path.stem for path in (Path(__file__).parents[2] / "scripts").glob("*.py"))


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_names_the_script_within_80_columns(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", [f"scripts/{name}.py"])
    monkeypatch.setenv("COLUMNS", "80")
    try:
        code = import_module(f"scripts.{name}").main(["--help"])
    except SystemExit as stop:
        code = stop.code
    assert not code
    said = capsys.readouterr().out
    assert f"{name}.py" in said
    assert max(map(len, said.splitlines())) <= 80


@pytest.mark.parametrize(
    ("name", "arguments", "code", "begins"),
    [
        ("analyse", ["nowhere"], 2, "error: nowhere: no such folder"),
        ("benchmark", ["efficiency", "--record", "nowhere.json"], 2, "error: "),
        ("collect", ["nowhere"], 2, "error: "),
        ("compare", ["nowhere", "elsewhere"], 2, "error: "),
        ("export", ["nowhere", "out"], 2, "error: nowhere/adapter: no "),
        ("figures", ["nowhere"], 2, "error: "),
        ("report", ["nowhere"], 2, "error: "),
        ("routing", ["method=moe_lora"], 2, "error: method: moe_lora has no routing without parameters"),
        ("routing", ["--runs", "nowhere"], 2, "error: nowhere: no such folder"),
        ("runs", ["nowhere"], 2, "error: "),
        ("wandb_sweep", ["no_such_experiment"], 2, "error: 1 problem in the configuration"),
    ],
)
def test_an_error_is_a_line(
    name: str,
    arguments: list[str],
    code: int,
    begins: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert import_module(f"scripts.{name}").main(arguments) == code
    said = capsys.readouterr().err
    assert said.startswith(begins), said
    assert "Traceback" not in said


def test_faults_of_the_program_are_not_hidden() -> None:
    @errors_in_one_line()
    def broken(arguments: list[str]) -> int:
        raise KeyError(arguments[0])

    with pytest.raises(KeyError):
        broken(["x"])


def test_overwrite_is_an_option_where_files_are_written() -> None:
    assert script_parser("text").parse_args(["--overwrite"]).overwrite
    with pytest.raises(SystemExit):
        script_parser("text", overwrite=None).parse_args(["--overwrite"])
