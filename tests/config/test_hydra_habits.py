"""What people know from Hydra: sweepers that look for the best, several choices of a group, folders of one's own,
``.hydra/``, ``compose``."""

from __future__ import annotations

import importlib
import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra.core.plugins import Plugins

import lime
from lime.config.check import ConfigError
from lime.config.schema import EvalConfig, TrainConfig
from lime.runs.record import Training, objective_of, write_record
from tests.config.line import line
from tests.experiments.made import record

VALIDATED = "trainer.validate_every_n_epochs=1"
SWEEPER = '''
import json
from pathlib import Path
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper

class LineSearch(Sweeper):
    """Halves an interval towards the lower end: as Optuna's sweeper, it asks its launcher for one run at a time."""

    def __init__(self, runs):
        self.runs = runs

    def setup(self, *, hydra_context, task_function, config):
        self.config = config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config)

    def sweep(self, arguments):
        parsed = OverridesParser.create().parse_overrides(arguments)
        fixed = [item.input_line for item in parsed if not item.is_sweep_override()]
        (searched,) = (item for item in parsed if item.is_sweep_override())
        low, high = searched.value().start, searched.value().end
        told = []
        for number in range(self.runs):
            point = f"{searched.get_key_element()}={high}"
            (job,) = self.launcher.launch([[*fixed, point]], initial_job_idx=number)
            told.append([high, job.return_value])
            high = (low + high) / 2
        Path("told.json").write_text(json.dumps(told))
'''


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of configurations of one's own, with a sweeper that is no part of Hydra."""
    (tmp_path / "plugins" / "hydra_plugins").mkdir(parents=True)
    (tmp_path / "plugins" / "hydra_plugins" / "line_search.py").write_text(SWEEPER, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path / "plugins"))
    for name in ("hydra_plugins", "hydra_plugins.line_search"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    Plugins.instance().register(importlib.import_module("hydra_plugins.line_search").LineSearch)
    own = tmp_path / "own" / "hydra" / "sweeper"
    own.mkdir(parents=True)
    (own / "line.yaml").write_text("_target_: hydra_plugins.line_search.LineSearch\nruns: 3\n", encoding="utf-8")
    (tmp_path / "own" / "optim").mkdir()
    (tmp_path / "own" / "optim" / "hot.yaml").write_text("defaults: [default]\npeft_lr: 0.5\n", encoding="utf-8")
    return tmp_path / "own"


def trained(config: Any, place: Path) -> None:
    """A run whose validation loss is ten times its learning rate; one that diverges above 0.3."""
    rate = config.optim.peft_lr
    losses = [{"step": 1, "loss": 99.0}, {"step": 2, "loss": 10 * rate}]
    status = "diverged" if rate > 0.3 else "finished"
    made = record(training=Training(1.0, validation=losses), status=status)
    write_record(place, made)


def told() -> list[list[float]]:
    values: list[list[float]] = json.loads(Path("told.json").read_text(encoding="utf-8"))
    return values


def test_a_sweeper_is_told_the_validation_loss_of_each_run(folder: Path) -> None:
    search = ["--config-dir", str(folder), "-m", "hydra/sweeper=line", "optim.peft_lr=interval(0.0,0.4)"]
    found = line(*search, VALIDATED, does=trained)
    assert found.code == 0, found.said
    assert [point for point, _ in told()] == [0.4, 0.2, 0.1]
    assert math.isnan(told()[0][1])  # diverged
    assert [value for _, value in told()[1:]] == [2.0, 1.0]
    assert len({place for _, place in found.runs}) == 3
    scored = line(*search, "objective=macro", does=trained)
    assert scored.code == 0, scored.said
    assert told()[1:] == [[0.2, None], [0.1, None]], "these records have no macro score"


def test_a_sweeper_that_would_be_told_nothing_is_refused(folder: Path) -> None:
    search = ["--config-dir", str(folder), "-m", "hydra/sweeper=line", "optim.peft_lr=interval(0.0,0.4)"]
    found = line(*search)
    assert (found.code, found.runs) == (2, [])
    assert "objective: validation_loss needs validations for this sweeper; set trainer.validate_every" in found.said
    assert "an interval has no list of values" in line("-m", "optim.peft_lr=interval(0.0,0.4)").said


def test_the_objective_is_of_the_weights_that_were_saved() -> None:
    losses = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 3.0}]
    last, best = Training(validation=losses), Training(validation=losses, weights_step=1)
    assert objective_of(record(training=last), "validation_loss") == 3.0
    assert objective_of(record(training=best), "validation_loss") == 2.0
    assert objective_of(record(training=Training()), "validation_loss") is None


def test_folders_of_ones_own(folder: Path) -> None:
    assert line("--config-dir", str(folder), "optim=hot").runs[0][0].optim.peft_lr == 0.5
    assert line(f"hydra.searchpath=[file://{folder}]", "optim=hot").runs[0][0].optim.peft_lr == 0.5
    assert "optim: no choice named 'hot'" in line("optim=hot").said


def test_several_loggers_and_open_sections() -> None:
    ((config, _),) = line(
        "logger=[wandb,tensorboard]", "trainer.extra.limit_train_batches=0.5", "logger.wandb.mode=offline",
        "callbacks.extra=[{_target_:mine.Callback,steps:3}]",
    ).runs  # fmt: skip
    assert config.logger.wandb.mode == "offline"
    assert config.logger.tensorboard
    assert config.trainer.extra == {"limit_train_batches": 0.5}
    assert config.callbacks.extra == [{"_target_": "mine.Callback", "steps": 3}]
    assert "trainer.max_epochs.x: unknown key" in line("trainer.max_epochs.x=1").said
    swept = line("-m", "trainer.extra.limit_train_batches=1,2").runs
    assert [config.trainer.extra["limit_train_batches"] for config, _ in swept] == [1, 2]
    assert line("trainer.accelerator=mps").runs[0][0].trainer.accelerator == "mps"
    assert line("trainer.accelerator=gpu", "trainer.devices=[0,2]").runs[0][0].trainer.devices == [0, 2]


def test_hydra_s_own_folder_is_that_of_the_run() -> None:
    ((config, place),) = line("seed=7", "lime.num_experts=3", "hydra.run.dir=out").runs
    texts = {path.stem: yaml.safe_load(path.read_text()) for path in (place / ".hydra").iterdir()}
    assert texts.keys() == {"config", "hydra", "overrides"}
    assert texts["overrides"] == ["seed=7", "lime.num_experts=3"]
    assert texts["config"]["lime"]["num_experts"] == config.lime.num_experts == 3
    assert texts["hydra"]["hydra"]["run"]["dir"] == "out"


def test_hydra_s_own_folder_of_another_run_stays() -> None:
    line("seed=7", "hydra.run.dir=out", does=lambda config, place: (place / "config.yaml").write_text("seed: 7\n"))
    before = (Path("out") / ".hydra" / "overrides.yaml").read_text()
    line("seed=8", "hydra.run.dir=out")
    assert (Path("out") / ".hydra" / "overrides.yaml").read_text() == before
    Path("theirs/.hydra").mkdir(parents=True)
    line("seed=8", "hydra.run.dir=theirs")
    assert not list(Path("theirs/.hydra").iterdir())


def test_compose_in_a_notebook() -> None:
    config = lime.compose("train", ["method=lora", "trainer.max_epochs=3"])
    assert isinstance(config, TrainConfig)
    assert (config.method, config.trainer.max_epochs, config.lime.enabled) == ("lora", 3, False)
    assert isinstance(lime.compose("eval", ["evaluation.mode=likelihood"]), EvalConfig)
    with pytest.raises(ConfigError, match=r"lime\.num_exprts: unknown key; did you mean lime\.num_experts"):
        lime.compose("train", ["lime.num_exprts=3"])
    with pytest.raises(ConfigError, match="compose: expected train or eval, got 'test'"):
        lime.compose("test")  # type: ignore[call-overload]
