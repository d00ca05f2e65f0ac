"""The conf/ tree composes, agrees with the package's presets, and mistakes on the command line are told together."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from lime.config.check import ConfigError, build
from lime.config.groups import choices
from lime.config.overrides import check, force, register, with_method
from lime.config.schema import EvalConfig, TrainConfig
from lime.method.deltas.table import MIXTURES, method_of
from lime.tuner.presets import PRESETS, preset_settings

ROOT = Path(__file__).parents[2]
CONF = ROOT / "conf"


def composed(*overrides: str, config_name: str = "train", schema: type = TrainConfig) -> Any:
    register(schema)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose(config_name, overrides=list(overrides))
    return build(schema, OmegaConf.to_container(config, resolve=True))


def told(*overrides: str) -> list[str]:
    register(TrainConfig)
    with pytest.raises(ConfigError) as caught:
        check(overrides, CONF, "train", TrainConfig)
    return caught.value.problems


def test_defaults_are_the_main_job() -> None:
    config = composed()
    assert (config.method, config.model.name, config.data.name) == ("lime_lora", "tiny_llava_onevision", "mmt47_mini")
    assert config.lime.enabled
    assert composed(config_name="eval", schema=EvalConfig).adapter is None


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_lime_group_is_the_preset(preset: str) -> None:
    assert dataclasses.replace(composed(f"lime={preset}").settings(), r=2, lora_alpha=16.0) == preset_settings(preset)


@pytest.mark.parametrize("name", MIXTURES)
def test_method_of_a_mixture_has_its_own_routing(name: str) -> None:
    config = composed(f"method={name}")
    assert config.method == name
    assert config.settings() == preset_settings(peft=name, r=config.settings().r)


def test_a_mixture_is_not_recorded_as_another_method() -> None:
    assert told("peft=moe_lora", "lime=mixture") == [
        "method: lime_lora, but peft.type is moe_lora; take method=moe_lora, which sets both"
    ]
    assert told("method=moe_lora", "peft=lora") == [
        "method: moe_lora, but peft.type is lora; take method=lime_lora, which sets both"
    ]


@pytest.mark.parametrize(
    ("given", "method"),
    [
        ("peft=any peft.base=vera", "lime_any"), ("peft=dora lime=paper", "lime_dora"), ("peft=mola", "mola"),
        ("lime=off", "lora"), ("peft=lora_fa lime=off", "lora_fa"),
    ],
)  # fmt: skip
def test_a_type_brings_its_method(given: str, method: str) -> None:
    line = with_method(["--cfg", "job", *given.split()], TrainConfig)
    assert line[:3] == ["--cfg", "job", f"method={method}"]
    assert composed(*line[2:]).method == method
    assert with_method(given.split(), EvalConfig) == given.split()


@pytest.mark.parametrize("line", ["method=lora", "lime=paper", "peft=lora,dora", "peft=unknown", "peft=any lime=off"])
def test_what_names_no_other_method_is_left_alone(line: str) -> None:
    assert with_method(line.split(), TrainConfig) == line.split()


def test_no_run_is_recorded_under_another_method() -> None:
    assert told("lime.enabled=false") == [
        "method: lime_lora, but lime.enabled is false; take method=lora, which sets both"
    ]
    assert told("peft.type=dora") == [
        "method: lime_lora, but peft.type is dora; take method=lime_dora, which sets both"
    ]


def test_numbers_are_finite_patterns_compile_and_splits_exist() -> None:
    found = told("optim.peft_lr=nan", "lime.temperature=inf", "peft.exclude_modules='('", "evaluation.splits=[sst3]")
    assert len(found) == 4
    text = "\n".join(found)
    assert "optim.peft_lr: expected a number, got nan (not finite)" in text
    assert "lime.temperature: expected a number, got inf (not finite)" in text
    assert "peft.exclude_modules: expected a list of module names, one regular expression, or nothing, got '('" in text
    assert "evaluation.splits: unknown split 'sst3'; did you mean 'sst2'?; `python scripts/data.py tasks`" in text


def test_every_row_of_the_published_table_is_a_method() -> None:
    rows = {
        "prompt_tuning", "lora", "dora", "lora_fa", "slicefine", "mocle", "moe_lora", "mix_lora", "hydra_lora", "mola",
        "more", "moe_dora", "lime_prompt_tuning", "lime_lora", "lime_dora", "lime_lora_fa", "lime_slicefine",
    }  # fmt: skip
    assert rows | {"moe_lora_fa"} <= set(choices("method"))


def test_every_choice_of_every_group_composes() -> None:
    groups = ["method", "lime", *(path.name for path in CONF.iterdir() if path.is_dir())]
    assert {"method", "model", "peft", "lime", "data", "optim", "trainer", "evaluation", "logger"} <= set(groups)
    defaults = OmegaConf.load(CONF / "train.yaml").defaults
    composed_already = {next(iter(entry.items())) for entry in defaults if not isinstance(entry, str)}
    for group in groups:
        for choice in choices(group):
            if (group, choice) in composed_already or (choice == "ray" and find_spec("ray") is None):
                continue
            extra = ["data.root=."] if group == "data" and choice in ("mmt47", "own") else []
            extra += ["model.path=any/name"] if (group, choice) == ("model", "hf") else []
            extra += ["method=lora"] if (group, choice) == ("lime", "off") else []
            extra += [f"method={method_of(choice, enabled=True).name}"] if group == "peft" else []
            composed(f"{group}={choice}", *extra)


def test_unreadable_experiment_names_its_file(tmp_path: Path) -> None:
    for text in ("a: [1", "- a\n- b\n"):
        (tmp_path / "odd.yaml").write_text(text)
        with pytest.raises(ConfigError, match=r"odd\.yaml"):
            register(TrainConfig, tmp_path)


def test_method_lora_switches_the_experts_off() -> None:
    config = composed("method=lora")
    assert config.method == "lora"
    assert not config.settings().enabled


def test_option_without_effect_is_an_error() -> None:
    assert told("method=lora", "lime.num_experts=8") == ["lime.num_experts: has no effect with lime=off (method=lora)"]


def test_plain_method_with_experts_is_an_error() -> None:
    assert any(
        problem.startswith("method: lora adapts without experts") for problem in told("method=lora", "lime=paper")
    )


def test_all_mistakes_of_a_command_line_are_told_together() -> None:
    found = told("lime.num_expert=3", "lime.temperature=hot", "model=tiny_lava", "peft.r=0", "+nonsense.x=1", "a=[1")
    assert len(found) == 6
    text = "\n".join(found)
    assert "lime.num_expert: unknown key; did you mean lime.num_experts?" in text
    assert "lime.temperature: expected a number, got 'hot' (text)" in text
    assert "model: no choice named 'tiny_lava'; did you mean tiny_llava_onevision?" in text
    assert "peft.r: expected a rank of at least 1, got 0" in text
    assert "nonsense.x: unknown key" in text
    assert "a=[1: cannot be read as KEY=VALUE" in text


@pytest.mark.parametrize("launcher", ["parallel", "slurm", "ray"])
def test_a_launcher_without_its_plugin_says_what_to_install(launcher: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lime.config.overrides.find_spec", lambda name: None)
    message = f"launcher={launcher}: its plugin for Hydra is not installed; `pip install 'lime-moe[{launcher}]'`"
    assert told(f"launcher={launcher}", "seed=1,2")[0] == message
    check(["launcher=local"], CONF, "train", TrainConfig)


def test_a_list_for_a_section_and_the_other_way_round_say_what_is_expected() -> None:
    assert told("trainer.extra=[a]") == ["trainer.extra=[a]: expected a section of keys, {…: …}"]
    assert told("callbacks.extra={_target_:a.B}") == ["callbacks.extra={_target_:a.B}: expected a list, […]"]
    assert told("data.weights={glue: x}") == [
        "data.weights: expected a section of keys (a number each) or null, got {'glue': 'x'} (section)"
    ]


def test_every_value_of_a_sweep_is_checked() -> None:
    assert told("lime.num_experts=4,0,many") == [
        "lime.num_experts: expected at least 1 expert, got 0",
        "lime.num_experts: expected a whole number, got 'many' (text)",
    ]


def test_key_inside_a_null_section_can_be_set() -> None:
    arguments = ["logger=wandb", "logger.wandb.project=mine", "model.image.max_pixels=null"]
    register(TrainConfig)
    check(arguments, CONF, "train", TrainConfig)
    config = composed(*force(arguments, TrainConfig))
    assert config.logger.wandb.project == "mine"
    assert config.model.image.max_pixels is None


def test_wrong_configuration_fails_fast_without_torch() -> None:
    code = "import runpy, sys; sys.argv = ['train.py', 'lime.num_expert=3']\n"
    code += "try: runpy.run_path('train.py', run_name='__main__')\n"
    code += "finally: print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 2
    assert "did you mean lime.num_experts?" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout.strip() == "False"
