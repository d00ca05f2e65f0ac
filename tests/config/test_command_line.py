"""The command line: whatever Hydra composes runs, and what cannot run is told in a sentence."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl

from lime.config.check import ConfigError
from lime.config.schema import TrainConfig
from lime.jobs.compose import composed
from tests.config.line import ROOT, Outcome, line


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def clear(found: Outcome) -> bool:
    return "Traceback" not in found.said and 'File "' not in found.said and found.code in (0, 2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("method=glob(lime*)", 6), ("method=glob([lora*,dora])", 3), ("seed=range(1,4)", 3), ("seed=choice(1,2)", 2),
        ("lime.routing_norm='slice','token'", 2), ("trainer.max_steps=null,2", 2), ("data.system_prompt=null,'a b'", 2),
        ("lime.max_experts=null,1", 2), ("hydra.sweeper.params={seed:'1,2'}", 2),
        ("+hydra.sweeper.params.seed='3,4'", 2),
        ("evaluation.splits=[glue_test_sst2],null", 2), ("seed=shuffle(range(1,3))", 2), ("optim.peft_lr=1e-3,2e-3", 2),
    ],
)  # fmt: skip
def test_every_sweep_that_hydra_lists_runs(text: str, values: int) -> None:
    found = line("-m", text, "name=x")
    assert found.code == 0, found.said
    assert len(found.runs) == values
    assert len({folder for _, folder in found.runs}) == values


def test_globs_quotes_and_nulls_are_listed_as_hydra_does() -> None:
    found = line("-m", "method=glob(lime_lo*)", "lime.routing_norm='slice','token'", "trainer.max_steps=null,2")
    assert found.code == 0, found.said
    assert len({folder for _, folder in found.runs}) == 8


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("-m seed=interval(1,4)", "seed=interval(1,4): an interval has no list of values"),
        ("-m method=glob(nothing*)", "method=glob(nothing*): matches nothing"),
        ("-m seed=range(1,1000000000)", "seed=range(1,1000000000): more than 10,000 values"),
        ("-m seed=range(1,200) trainer.max_steps=range(1,200)", "the sweep has more than 10,000 points"),
        ("-m debug=null,fast", "debug: null in a sweep"),
        ("seed=1,2", "seed=1,2: several values make a sweep, which needs -m"),
        ("lime.num_experts=1,2", "lime.num_experts=1,2: several values make a sweep, which needs -m"),
        ("peft=null", "peft: null is none of its choices"),
        ("peft=[1,2]", "peft: no choice named '1'"),
        ("peft={a:1}", "peft: no choice named"),
        ("logger=null", "logger: null is none of its choices"),
        ("hydra.run.dir=${foo}", "hydra.run.dir: Interpolation key 'foo' not found"),
        ("hydra.job.name=${a.b}", "hydra.job.name: Interpolation key"),
        ("hydra.sweep.subdir=${nothing}", "hydra.sweep.subdir: Interpolation key"),
        ("hydra/launcher=none_such", "Could not find 'hydra/launcher/none_such'"),
        ("--experimental-rerun x", "--experimental-rerun: not supported"),
        ("--epochs 3", "--epochs: no such option; settings are written KEY=VALUE; did you mean trainer.max_epochs=3?"),
        ("--num-experts=4", "did you mean lime.num_experts=4?"),
        ("--config-dir nowhere", "--config-dir: "),
        ("--config-path nowhere", "--config-path: nowhere: no such folder"),
        ("--cfg job --info", "--cfg and --info: expected only one"),
        ("--cfg job peft=null", "Config group override must be a string or a list"),
        ("launcher=slurm", "launcher=slurm: starts the runs of a sweep, which needs -m"),
        ("peft.r=1000000000", "peft.r: expected at most 65,536, got 1,000,000,000"),
        ("peft.r=1e9", "peft.r: expected a whole number"),
        ("evaluation.resamples=1000000000", "evaluation.resamples: unknown key"),
        ("++hydra.verbose=99999999999999999999999", "hydra.verbose: expected true, false"),
        ("~hydra/job_logging", "hydra.job_logging: expected a configuration of logging"),
        ("evaluation.max_new_tokens=1000000000", "evaluation.max_new_tokens: expected at most 1,000,000"),
        ("trainer.max_epochs=99999999999999999999", "trainer.max_epochs: expected at most 2,147,483,647"),
        ("optim.peft_lr=1e300", "optim.peft_lr: expected a number up to 1e+30"),
        ("model.path=/no/where", "model.path: /no/where: no such folder"),
        ("model.path=.", "model.path: . has no config.json"),
        ("ckpt_path=.", "ckpt_path: . is a folder"),
        ("targets=q_proj", "targets: unknown key; did you mean peft.target_modules?"),
        ("-m name=a,b", "give it a command of its own"),
        ("-m data.num_workers=0,1", "the same run as data.num_workers=0, in the same folder"),
        ("-m data.prefetch=2,3 seed=1,2", "the same run as data.prefetch=2"),
        ("-m data.mini.seed=1,2 data.root=here", "data.root: here would hold another variant for each point"),
        ("=", "unknown key"),
        ("seed==", "cannot be read as KEY=VALUE"),
        ("seed=[", "cannot be read as KEY=VALUE"),
    ],
)  # fmt: skip
def test_what_cannot_run_is_told(arguments: str, told: str) -> None:
    found = line(*arguments.split(" "))
    assert clear(found), found.said
    assert found.code == 2
    assert told in found.said
    assert not found.runs


def test_a_run_is_composed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    compose, calls = ConfigLoaderImpl.load_configuration, []

    def counted(*arguments: Any, **options: Any) -> Any:
        calls.append(options)
        return compose(*arguments, **options)

    monkeypatch.setattr(ConfigLoaderImpl, "load_configuration", counted)
    ((config, folder),) = line("method=mola", "hydra.run.dir=x-${now:%f}").runs
    assert config.method == "mola"
    assert len(calls) == 1
    assert folder.name.startswith("x-")
    assert composed(["seed=3"], ROOT / "conf", "train", TrainConfig).seed == 3
    assert len(calls) == 2


def test_options_and_overrides_come_in_any_order() -> None:
    assert len(line("seed=1,2", "-m", "lime.num_experts=3").runs) == 2
    assert line("debug=null", "seed=3").runs[0][0].seed == 3


def test_what_runs_otherwise_than_it_looks_is_said() -> None:
    found = line("+experiment=num_experts")
    assert "note: +experiment=num_experts sweeps lime.num_experts, seed: without -m this is a single run" in found.said
    assert "lime.num_experts=4, seed=42" in found.said
    assert "note" not in line("+experiment=num_experts", "lime.num_experts=3", "seed=1").said
    found = line("~trainer.max_epochs")
    assert "trainer.max_epochs is 1, not 2" in found.said
    assert found.runs[0][0].trainer.max_epochs == 1
    assert "note" not in line("~evaluation.splits").said


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    for name, text in (("model/mine", "name: tiny_llava_onevision\nfamily: llava_onevision\nrecipe: {rank: 3}\n"),
                       ("own/x", "# @package _global_\nseed: 7\n")):  # fmt: skip
        path = tmp_path / "mine" / f"{name}.yaml"
        path.parent.mkdir(parents=True)
        path.write_text(text)
    return tmp_path / "mine"


@pytest.mark.parametrize(
    "way",
    ["--config-dir", *(pytest.param(way, marks=pytest.mark.slow) for way in ("hydra.searchpath", "--config-path"))],
)
def test_a_configuration_folder_of_ones_own(mine: Path, way: str) -> None:
    if way == "--config-path":
        shutil.copytree(ROOT / "conf", mine, dirs_exist_ok=True)
    ways = {
        "--config-dir": ["--config-dir", "mine"],
        "--config-path": ["--config-path", str(mine)],
        "hydra.searchpath": [f"hydra.searchpath=[file://{mine}]"],
    }
    for more in ([], ["-m", "seed=7,8"]):
        found = line(*ways[way], "model=mine", "+own=x", *more)
        assert found.code == 0, found.said
        assert found.runs[0][0].peft.r == 3
        assert found.runs[0][0].seed == 7
    wrong = line(*ways[way], "model=mne")
    assert "model: no choice named 'mne'; did you mean mine?" in wrong.said


def test_paths_count_from_where_the_command_was_given(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    found = line("data=mmt47", "data.root=here", "hydra.job.chdir=true", "hydra.run.dir=run")
    assert found.code == 0, found.said
    assert found.runs[0][1] == tmp_path / "run"
    assert Path.cwd() == tmp_path
    found = line("-m", "data=mmt47", "data.root=here", "hydra.job.chdir=true", "seed=1,2")
    assert found.code == 0, found.said


def test_home_is_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    assert line("data=mmt47", "data.root=~/a").runs[0][0].data.root == str(tmp_path / "a")
    assert len(line("-m", "data=mmt47", "data.root=~/a,~/b").runs) == 2
    assert line("hydra.run.dir=~/run").runs[0][1] == tmp_path / "run"


def test_scripts_take_every_option_of_train() -> None:
    assert composed(["+experiment=num_experts"], ROOT / "conf", "train", TrainConfig).name == "num_experts"
    assert composed(["--config-dir", str(ROOT), "seed=3"], ROOT / "conf", "train", TrainConfig).seed == 3
    with pytest.raises(ConfigError, match="single run"):
        composed(["-m", "seed=3"], ROOT / "conf", "train", TrainConfig)


@pytest.mark.slow
@pytest.mark.parametrize(
    "way",
    [
        ["-m", "cProfile", "-o", "profile", str(ROOT / "train.py")],
        ["-m", "cProfile", "-o", os.devnull, "train.py"],
        ["-m", "train"],
    ],
)
def test_under_a_profiler_and_as_a_module(way: list[str], tmp_path: Path) -> None:
    command = [sys.executable, *way, "--cfg", "job", "seed=5"]
    cwd = tmp_path if "profile" in way else ROOT
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)
    assert done.returncode == 0, done.stderr
    assert "seed: 5" in done.stdout


KEYS = [
    "seed", "name", "method", "model", "peft", "lime", "data", "optim", "trainer", "evaluation", "logger", "callbacks",
    "launcher", "debug", "+experiment", "ckpt_path", "cache_dir", "reuse", "peft.r", "peft.lora_alpha", "peft.dropout",
    "peft.target_modules", "peft.exclude_modules", "peft.base", "peft.base_options", "peft.type", "peft.scope",
    "lime.num_experts", "lime.temperature", "lime.top_k", "lime.n_gram", "lime.enabled", "lime.balance",
    "lime.balance.alpha", "lime.routing_norm", "lime.max_experts", "data.root", "data.name", "data.train_rows",
    "data.validation_fraction", "data.max_length", "data.mini", "data.mini.seed", "data.frame_cache",
    "data.num_workers",
    "optim.peft_lr", "optim.betas", "optim.schedule", "trainer.max_epochs", "trainer.max_steps", "trainer.batch_size",
    "trainer.devices", "trainer.precision", "trainer.strategy", "evaluation.splits", "evaluation.max_new_tokens",
    "evaluation.mode", "evaluation.batch_size", "callbacks.keep_checkpoints", "logger.wandb", "logger.wandb.tags",
    "model.path", "model.name", "model.image.max_tiles", "model.dtype", "hydra.run.dir", "hydra.sweep.dir",
    "hydra.sweep.subdir", "hydra.job.name", "hydra.job.chdir", "hydra.verbose", "hydra/launcher", "hydra/sweeper",
    "hydra.sweeper.params", "hydra.launcher", "hydra.mode", "hydra.searchpath", "hydra.output_subdir", "hydra",
    "nonsense",
    "trainer.nonsense", "", "lime.", ".r", "a.b.c", "hydra.job_logging", "hydra/job_logging", "hydra.callbacks",
]  # fmt: skip
VALUES = [
    "null", "1", "0", "-1", "1e9", "1000000000", "1e400", "nan", "inf", "true", "a", "''", "'a b'", "\"x\"", "[]",
    "[1,2]",
    "[a,b]", "{}", "{a:1}", "{a:{b:[1]}}", "${seed}", "${foo}", "${now:%Y}", "${oc.env:NONE}", "${run_id:}", "${", "$",
    "1,2",
    "a,b", "'a','b'", "null,1", "lora,dora", "glob(*)", "glob(lime*)", "range(1,3)", "interval(0,1)", "choice(1,a)",
    "sort(2,1)", "shuffle(1,2)", "lora", "lime_lora", "fast", "num_experts", "ü", "~/x", "/dev/null", "..", "off",
    "???",
    "int(1)", "tag(a,interval(1,2))", "extend_list(1)", "99999999999999999999999", "0.5", "[[1],[2]]", "a=b", "a:b",
    " ", "",
]  # fmt: skip
PREFIXES = ["", "", "", "", "", "", "+", "++", "~"]


PLAUSIBLE = [
    "seed=3", "peft.r=4", "lime.num_experts=8", "method=lora", "method=moe_lora", "model=tiny_qwen2vl", "debug=fast",
    "trainer.max_steps=null", "data.system_prompt='a, b'", "evaluation.splits=[glue_test_sst2]", "logger=wandb",
    "optim.betas=[0.9,0.99]", "hydra.job.chdir=true", "~evaluation.splits", "+logger.wandb.project=x", "peft=dora",
    "peft.target_modules='.*q_proj'", "trainer.max_epochs=${model.recipe.rank}", "lime=paper", "data.root=${name}",
]  # fmt: skip


def odd_line(draw: random.Random) -> list[str]:
    """One to three odd or plausible overrides, as a sweep every third time."""
    found = ["-m"] if draw.random() < 0.33 else []
    strange = draw.random() < 0.75
    for number in range(draw.randint(1, 3)):
        if number or not strange:
            found.append(draw.choice(PLAUSIBLE))
            continue
        prefix, key = draw.choice(PREFIXES), draw.choice(KEYS)
        bare = prefix == "~" and draw.random() < 0.7
        found.append(f"{prefix}{key}" if bare else f"{prefix}{key}={draw.choice(VALUES)}")
    if draw.random() < 0.05:
        found.append(draw.choice(["--epochs", "--cfg", "-x", "--config-dir", "--resolve", "--info=searchpath", "-p"]))
    return found


def fuzz(count: int, seed: int) -> tuple[int, int, list[tuple[list[str], str]]]:
    """How many odd command lines ran, how many were refused, and those that were not clear."""
    draw = random.Random(seed)
    ran, refused, unclear = 0, 0, []
    for number in range(count):
        arguments = odd_line(draw)
        found = line(*arguments, program="eval" if number % 5 == 4 else "train")
        if not clear(found):
            unclear.append((arguments, found.said[-600:]))
        elif found.code == 0:
            ran += 1
        else:
            refused += 1
    return ran, refused, unclear


@pytest.mark.slow
def test_no_odd_command_line_ends_in_a_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    ran, refused, unclear = fuzz(150, seed=20260)
    with capsys.disabled():
        print(f"\n150 configurations tried: {ran} ran, {refused} refused in a sentence, {len(unclear)} tracebacks")
    assert not unclear
    assert ran > 15
    assert refused > 50
