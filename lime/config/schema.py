"""The whole configuration of a run: what ``train.py`` and ``eval.py`` accept, composed from each room's own dataclass.

Sections mirror the groups under ``conf/``. Nothing here imports torch.
"""

from __future__ import annotations

import dataclasses
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from lime.config.adapters import hub_name
from lime.config.bounds import bound_errors
from lime.config.check import ConfigError
from lime.config.modules import import_types
from lime.config.training import TOWERS, CallbacksConfig, LoggerConfig, OptimConfig, TrainerConfig
from lime.data.config import OWN, DataConfig
from lime.data.tasks import mmt47, table_of
from lime.evaluation.config import EvaluationConfig
from lime.method.deltas.table import METHODS, TYPES, method_of
from lime.processors.config import ModelConfig
from lime.system.checks import too_small
from lime.tuner.settings import SCOPES, LimeSettings

AUTO = "auto"
TRUE_DTYPES = {"bf16-true": "bfloat16", "16-true": "float16"}
"""What the precisions without autocast compute in."""
PEFT_OPTIONS = {
    "peft": "type",
    "r": "r",
    "lora_alpha": "lora_alpha",
    "rslora": "rslora",
    "dropout": "dropout",
    "orientation": "orientation",
    "num_virtual_tokens": "num_virtual_tokens",
    "prompt_init": "prompt_init",
    "base": "base",
    "base_options": "base_options",
    "scope": "scope",
    "target_modules": "target_modules",
    "exclude_modules": "exclude_modules",
}
"""Options of LimeSettings that describe the update itself, and their names in the section ``peft``."""


@dataclass
class BalanceConfig:
    """Balance losses (Eq. 5): ``L = L_task + alpha L_imp + beta L_KL`` on one optimiser step in ``every_n_steps``.

    Attributes:
        alpha: weight of the importance loss.
        beta: weight of the KL loss.
        every_n_steps: optimiser steps of which one has the balance losses.
        start_ratio: share of all optimiser steps that go by before the first of them.
    """

    alpha: float = 0.1
    beta: float = 0.01
    every_n_steps: int = 1
    start_ratio: float = 0.0


def _section(name: str, text: str, options: dict[str, str], *extra: tuple[str, type, Any]) -> type:
    """A dataclass with the named options of LimeSettings, so that option and default exist once."""
    hints, defaults = typing.get_type_hints(LimeSettings), LimeSettings()
    fields: list[Any] = [(new, hints[old], field(default=getattr(defaults, old))) for old, new in options.items()]
    return dataclasses.make_dataclass(name, [*fields, *extra], namespace={"__module__": __name__, "__doc__": text})


LIME_OPTIONS = {f.name: f.name for f in dataclasses.fields(LimeSettings) if f.name not in PEFT_OPTIONS}

_PEFT_TEXT = """The shared update.

Attributes:
    module: Python module that registers `type`, where that is a type of one's own (docs/method.md).
"""

if typing.TYPE_CHECKING:
    PeftSection: TypeAlias = Any
    LimeSection: TypeAlias = Any
else:
    PeftSection = _section("PeftSection", _PEFT_TEXT, PEFT_OPTIONS, ("module", str | None, field(default=None)))
    LimeSection = _section(
        "LimeSection",
        "Experts and routing.",
        LIME_OPTIONS,
        ("balance", BalanceConfig, field(default_factory=BalanceConfig)),
    )


def settings_key(option: str) -> str:
    """Full key of an option of LimeSettings: ``r`` is ``peft.r``, ``num_experts`` is ``lime.num_experts``."""
    return f"peft.{PEFT_OPTIONS[option]}" if option in PEFT_OPTIONS else f"lime.{option}"


@dataclass
class TrainConfig:
    """Configuration of ``train.py``.

    Attributes:
        name: name of the run; part of its folder's name and of the records.
        seed: seed of data order, initial values, routing noise and dropout.
        method: row of the published Table 2 that the groups peft and lime were set to; must fit them.
        ckpt_path: where training starts: ``auto``, the newest checkpoint in the run's own folder, if there is one; the
            path of a checkpoint; null, anew.
        cache_dir: folder of what runs share: results of the frozen backbones.
        reuse: which finished runs a sweep takes as they are. ``exact``: those of the same configuration, data and code;
            ``any_code``: also those of another version of the code; ``never``: none.
        objective: what a run returns to a sweeper of Hydra that looks for the best (Optuna, Ax, Nevergrad): the
            ``validation_loss`` of the weights that are saved, the lower the better, or ``macro``, the score over the
            test rows, the higher the better.
    """

    name: str = "main"
    seed: int = 42
    method: str = "lime_lora"
    ckpt_path: str | None = "auto"
    cache_dir: str | None = ".cache/lime"
    reuse: Literal["exact", "any_code", "never"] = "exact"
    objective: Literal["validation_loss", "macro"] = "validation_loss"
    model: ModelConfig = field(default_factory=ModelConfig)
    peft: PeftSection = field(default_factory=lambda: PeftSection())
    lime: LimeSection = field(default_factory=lambda: LimeSection())
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    callbacks: CallbacksConfig = field(default_factory=CallbacksConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)

    def settings(self) -> LimeSettings:
        """The sections ``peft`` and ``lime`` as the options of the method; a type of one's own is registered first."""
        if self.peft.module is not None:
            import_types(self.peft.module)
        values = {option: getattr(self.peft, key) for option, key in PEFT_OPTIONS.items()}
        return LimeSettings(**values, **{option: getattr(self.lime, option) for option in LIME_OPTIONS})

    def errors(self) -> list[str]:
        found = (
            _seed_errors(self.seed)
            + _name_errors(self.name)
            + _path_errors(self.data, ckpt_path=None if self.ckpt_path == "auto" else self.ckpt_path)
            + _model_path_errors(self.model.path)
            + self._checkpoint_errors()
        )
        found += self._validation_errors() + self._precision_errors()
        if self.model.device_map is not None:
            found.append("model.device_map: for eval.py; training places the model itself (trainer=fsdp divides it)")
        try:
            found += self.settings().errors(settings_key)
        except ConfigError as error:
            return [*found, *error.problems]
        found += _evaluation_errors(self.evaluation, self.data) + self.data.name_errors(mmt47().known_names())
        found += self._balance_errors() + self._rate_errors()
        if not self.lime.enabled:
            found += self._without_lime()
        return found + self._method_errors() + list(bound_errors(self))

    def _holds_rows_out(self) -> bool:
        return self.data.validation_fraction > 0 or self.data.name == "own"  # which may have a file of them

    def _validation_errors(self) -> list[str]:
        """Options that look at validations, where there are none."""
        callbacks, some = self.callbacks, self.trainer.validates and self._holds_rows_out()
        if self.trainer.val_check_interval is not None and not self._holds_rows_out():
            return ["trainer.val_check_interval: no rows are held out; raise data.validation_fraction"]
        used = {
            "callbacks.early_stopping": callbacks.early_stopping is not None,
            "callbacks.keep_best": callbacks.keep_best > 0,
            "callbacks.weights=best": callbacks.weights == "best",
            "trainer.extra.limit_val_batches": "limit_val_batches" in self.trainer.extra,
        }
        need = "trainer.validate_every_n_epochs=1 or trainer.val_check_interval, and data.validation_fraction above 0"
        found = [f"{key}: has no effect without validations; set {need}" for key, on in used.items() if on and not some]
        if callbacks.weights == "best" and self.trainer.strategy == "deepspeed":
            found.append("callbacks.weights=best: not with deepspeed, whose checkpoints are folders of its own")
        return found

    def _precision_errors(self) -> list[str]:
        """Precisions that are the backbone's dtype: it must have it, or eval.py would load another one than was
        trained on."""
        precision, dtype = self.trainer.precision, TRUE_DTYPES.get(self.trainer.precision)
        if dtype is None or self.model.dtype == dtype:
            return []
        return [f"trainer.precision: {precision} computes all in {dtype}; set model.dtype={dtype} too"]

    def without_objective(self) -> str | None:
        """Why a run returns no number to a sweeper that needs one; None where it does."""
        if self.objective == "macro":
            return "objective: macro needs test rows; set evaluation.mode" if self.evaluation.mode == "none" else None
        if self.trainer.validates and self._holds_rows_out():
            return None
        need = "set trainer.validate_every_n_epochs=1 and data.validation_fraction above 0"
        return f"objective: validation_loss needs validations for this sweeper; {need}, or objective=macro"

    def _checkpoint_errors(self) -> list[str]:
        """A folder where a checkpoint's file is expected (only DeepSpeed's are folders)."""
        path = Path(self.ckpt_path or AUTO)
        if self.ckpt_path in (None, AUTO) or not path.is_dir() or self.trainer.strategy == "deepspeed":
            return []
        inside = sorted([*path.glob("*.ckpt"), *path.glob("checkpoints/*.ckpt")], key=lambda file: file.stat().st_mtime)
        hint = f"did you mean {inside[-1]}?" if inside else "expected a file, RUN/checkpoints/NAME.ckpt"
        return [f"ckpt_path: {path} is a folder; {hint} (hydra.run.dir=RUN goes on with a run in its own folder)"]

    def _method_errors(self) -> list[str]:
        """A method that is not what ``peft`` and ``lime`` make: tables would show the run under a wrong name."""
        kind: str = self.peft.type
        named = METHODS.get(self.method)
        if named is not None and named.is_plain and self.lime.enabled:
            return [
                f"method: {self.method} adapts without experts, but lime.enabled is true; "
                f"take method=lime_{self.method}, or leave the group lime alone"
            ]
        fitting = method_of(kind, self.lime.enabled) if kind in TYPES else None
        if fitting is None or fitting.name == self.method:
            return []
        same_type = named is not None and named.type is fitting.type
        what = "lime.enabled is false" if same_type else f"peft.type is {kind}"
        return [f"method: {self.method}, but {what}; take method={fitting.name}, which sets both"]

    def _balance_errors(self) -> list[str]:
        balance = self.lime.balance
        found = too_small(balance, "lime.balance", {"alpha": 0, "beta": 0, "every_n_steps": 1})
        if not 0 <= balance.start_ratio < 1:
            found.append(f"lime.balance.start_ratio: expected a share from 0 to below 1, got {balance.start_ratio}")
        return found

    def _rate_errors(self) -> list[str]:
        """Learning rates that no parameter can have; what a model's own layers decide is told when it is adapted."""
        scope, kind = self.peft.scope, TYPES.get(self.peft.type)
        adapted = set(SCOPES.get(scope, TOWERS))
        adapted |= {"projector"} if "vision_tower" in adapted else set()  # which may hold one
        found = [
            f"optim.{tower}.{name}: has no effect with peft.scope={scope}; leave it null"
            for tower in TOWERS
            for name, rate in vars(getattr(self.optim, tower)).items()
            if rate is not None and tower not in adapted
        ]
        has_B = kind is None or kind.name == "any" or "lora_alpha" in kind.options
        if self.optim.loraplus_ratio is not None and not has_B:
            found.append(f"optim.loraplus_ratio: peft.type={self.peft.type} has no A and B; leave it null")
        return found

    def _without_lime(self) -> list[str]:
        """Options of the section lime that were changed although it is off."""
        default, names = LimeSection(enabled=False), [f.name for f in dataclasses.fields(self.lime)]
        changed = [name for name in names if getattr(self.lime, name) != getattr(default, name)]
        return [f"lime.{name}: has no effect with lime=off (method={self.method})" for name in changed]


@dataclass
class EvalConfig:
    """Configuration of ``eval.py``.

    Attributes:
        name: name of the evaluation; part of its folder's name.
        seed: seed (greedy evaluation draws nothing; kept so that the record is whole).
        adapter: adapter folder of a run, or its name on the hub (ORG/NAME, pinned by ORG/NAME@REVISION). Of a run of
            one's own its configuration is used for what the command line does not set; of another adapter only what
            `lime.config.reuse.TAKEN` lists.
        peft_module: module that registers the adapter's PEFT type, where it is a type of one's own; of a run of one's
            own the run's is taken.
        predictions: a predictions.jsonl to score again, without a model.
        devices: processes that divide the rows among them, with one GPU each where GPUs are used; -1 for every GPU.
            Answers do not depend on it.
        cache_dir: folder of what runs share: results of the frozen backbones.
    """

    name: str = "eval"
    seed: int = 42
    adapter: str | None = None
    peft_module: str | None = None
    predictions: str | None = None
    devices: int = 1
    cache_dir: str | None = ".cache/lime"
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    def errors(self) -> list[str]:
        found = _seed_errors(self.seed) + _name_errors(self.name) + list(bound_errors(self))
        found += _evaluation_errors(self.evaluation, self.data, self.adapter, self.predictions)
        found += _model_path_errors(self.model.path)
        local = None if self.adapter is None or hub_name(self.adapter) else self.adapter
        found += _path_errors(self.data, adapter=local, predictions=self.predictions)
        if self.peft_module is not None:
            try:
                import_types(self.peft_module, "peft_module")
            except ConfigError as error:
                found += error.problems
        if self.evaluation.mode == "none":
            found.append("evaluation.mode: none leaves nothing to do here; expected generate or likelihood")
        if self.adapter is not None and self.predictions is not None:
            found.append("predictions: scores saved answers without a model; leave out adapter")
        if self.devices != -1 and self.devices < 1:
            found.append(f"devices: expected at least 1, or -1 for every GPU, got {self.devices}")
        if self.devices != 1 and self.model.device_map is not None:
            found.append("devices: model.device_map divides the model in one process; leave devices at 1")
        return found


def _seed_errors(seed: int) -> list[str]:
    return [] if 0 <= seed < 2**32 else [f"seed: expected 0 to {2**32 - 1}, got {seed}"]


def _evaluation_errors(
    evaluation: EvaluationConfig, data: DataConfig, adapter: str | None = None, predictions: str | None = None
) -> list[str]:
    """What is wrong with an evaluation. Names of splits are looked up in the table that saved predictions have, else in
    MMT-47's; those of a table that is read later (one's own data, or that of the adapter's run) when it is read."""
    try:
        if predictions is not None:
            return evaluation.errors(table_of(Path(predictions)).known_names())
        later = data.name == OWN or (adapter is not None and not table_of(Path(adapter).parent).is_mmt47)
    except ValueError as error:
        return [str(error)]
    return evaluation.errors(() if later else mmt47().known_names())


def _path_errors(data: DataConfig, **paths: str | None) -> list[str]:
    """Named files and folders that are not there. The embedded benchmark's root may still have to be generated."""
    found = [
        f"{key}: {path}: no such file or folder" for key, path in paths.items() if path and not Path(path).exists()
    ]
    if data.name != "mmt47_mini" and data.root and not Path(data.root).is_dir():
        found.append(f"data.root: {data.root}: no such folder; expected one that holds the data set")
    return found


def _model_path_errors(path: str | None) -> list[str]:
    """A checkpoint folder that is not there. A name as on the hub, ORG/NAME, is looked for when it is loaded."""
    if path is None:
        return []
    if Path(path).is_dir():
        lacking = not (Path(path) / "config.json").is_file()
        return [f"model.path: {path} has no config.json: expected a checkpoint folder"] if lacking else []
    if path.count("/") == 1 and path[0] not in "./~":
        return []
    return [f"model.path: {path}: no such folder; expected one with config.json, or a hub name ORG/NAME"]


def _name_errors(name: str) -> list[str]:
    good = name and all(letter.isalnum() or letter in "-_.,=+" for letter in name)
    return [] if good else [f"name: expected letters, digits and -_.,=+ (it names a folder), got {name!r}"]
