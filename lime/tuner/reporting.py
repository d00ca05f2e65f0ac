"""What was adapted: modules, towers, parameters."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from torch import nn

from lime.tuner.layers.base import LimeLayer
from lime.tuner.layers.decoding import is_decodable
from lime.tuner.layers.frozen_linear import shape_of
from lime.tuner.layers.linear import LimeLinear
from lime.tuner.layers.wrapped import LimeWrapped
from lime.tuner.prompt.layer import PromptLayer
from lime.tuner.towers import find_parts, kind_of


@dataclass(frozen=True)
class ReportRow:
    """One adapted linear layer, or the virtual tokens of a language model: then `d_in` is their number."""

    module: str
    tower: str
    d_in: int
    d_out: int
    trainable: int


@dataclass(frozen=True)
class TowerTotal:
    """Adapted layers of one kind of tower."""

    tower: str
    layers: int
    trainable: int


@dataclass(frozen=True)
class ApplyReport:
    """The adapted layers, in the model's order.

    Attributes:
        rows: one per adapted layer.
        total_parameters: all parameters of the model, adapter included.
        adapter_parameters: those that the adapter added, whether they train or not.
        saved_modules: trainable parameters of `modules_to_save`.
        ways: one line on the ways that calls of LiME's layers take (`LimeLinear.choose`), and why not the fused one;
            empty without such layers.
    """

    rows: tuple[ReportRow, ...]
    total_parameters: int
    adapter_parameters: int
    saved_modules: int = 0
    ways: str = ""

    @property
    def trainable(self) -> int:
        """Trainable parameters in all."""
        return sum(row.trainable for row in self.rows) + self.saved_modules

    @property
    def layers(self) -> int:
        """Number of adapted layers."""
        return len(self.rows)

    @property
    def towers(self) -> tuple[TowerTotal, ...]:
        """Totals of each kind of tower."""
        kinds = list(dict.fromkeys(row.tower for row in self.rows))
        by_kind = {kind: [row for row in self.rows if row.tower == kind] for kind in kinds}
        return tuple(TowerTotal(kind, len(rows), sum(row.trainable for row in rows)) for kind, rows in by_kind.items())

    def table(self, every_layer: bool = False) -> str:
        """Plain text: per tower (or, with `every_layer`, per layer) the adapted layers and their trainable
        parameters."""
        if every_layer:
            lines = [("module", "tower", "d_in", "d_out", "trainable")]
            lines += [(r.module, r.tower, f"{r.d_in:,}", f"{r.d_out:,}", f"{r.trainable:,}") for r in self.rows]
            return _aligned(lines, left=2)
        lines3 = [("tower", "layers", "trainable")]
        lines3 += [(t.tower, f"{t.layers:,}", f"{t.trainable:,}") for t in self.towers]
        if self.saved_modules:
            lines3.append(("modules_to_save", "", f"{self.saved_modules:,}"))
        lines3.append(("total", f"{self.layers:,}", f"{self.trainable:,}"))
        share = 100 * self.trainable / self.total_parameters
        shown = _aligned(lines3, left=1) + f"\n{share:.3f}% of {self.total_parameters:,} parameters train"
        return f"{shown}\n{self.ways}" if self.ways else shown

    def __str__(self) -> str:
        return self.table()


def _aligned(lines: Sequence[tuple[str, ...]], left: int) -> str:
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    rows = []
    for line in lines:
        cells = (
            cell.ljust(w) if i < left else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        )
        rows.append("  ".join(cells).rstrip())
    return "\n".join(rows)


def count(parameter: nn.Parameter) -> int:
    """Numbers that a parameter stands for; one of 4 bits keeps two of them in a byte, or more in a wider element."""
    shape = getattr(getattr(parameter, "quant_state", None), "shape", None)
    if shape is not None:
        return math.prod(shape)
    if type(parameter).__name__ == "Params4bit":  # not yet packed by its device, or without its state
        packed = parameter.dtype not in (torch.float32, torch.bfloat16, torch.float16)
        return parameter.numel() * (2 * parameter.element_size() if packed else 1)
    return parameter.numel()


def report(model: nn.Module) -> ApplyReport:
    """Report on a model that was adapted before, by LiME or by a plain type of the `peft` library."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    towers = find_parts(base)
    rows, saved, added = [], 0, 0
    inside = None
    for name, module in base.named_modules():
        if inside is not None and name.startswith(inside):
            continue
        if not isinstance(module, BaseTunerLayer | ModulesToSaveWrapper):
            continue
        inside = name + "."
        parameters = list(base.get_submodule(name).parameters())
        trainable = sum(p.numel() for p in parameters if p.requires_grad)
        if isinstance(module, ModulesToSaveWrapper):
            saved += trainable
            original: Any = module.original_module
        else:
            original = None if isinstance(module, PromptLayer) else module.get_base_layer()
            shape: Any = module if original is None else shape_of(original)
            rows.append(ReportRow(name, kind_of(towers, name), shape.in_features, shape.out_features, trainable))
        added += sum(count(p) for p in parameters)
        added -= 0 if original is None else sum(count(p) for p in original.parameters())
    return ApplyReport(tuple(rows), sum(count(p) for p in base.parameters()), added, saved, ways(base))


def ways(model: nn.Module) -> str:
    """One line: how many LiME layers take which way just now, and why not the fused one; empty without such layers."""
    layers = [module for module in model.modules() if isinstance(module, LimeLinear | LimeWrapped)]
    choices = [(layer.choose(), layer) for layer in layers]
    parts = [f"{len([1 for choice, _ in choices if choice.way == 'fused']):,} fused"]
    reasons = Counter(choice.reason for choice, _ in choices if choice.way != "fused")
    parts += [f"{number:,} torch ({reason})" for reason, number in reasons.most_common()]
    decoded = sum(choice.way == "fused" and is_decodable(layer.lime_settings[choice.name]) for choice, layer in choices)
    if decoded:
        parts.append(f"in generate {decoded:,} decoding")
    return f"ways through the layers: {', '.join(parts)}" if layers else ""


class Owned(NamedTuple):
    """A trainable parameter.

    Attributes:
        name: its full name.
        parameter: itself.
        group: `modulators` (experts, shared modulators, gammas, learned routers) or `peft` (parameters of the update,
            of plain peft adapters and of `modules_to_save`).
        tower: kind of the tower that it lies in; `other` outside of them.
        up: it is a B of LoRA, of LiME's types or of the `peft` library.
    """

    name: str
    parameter: nn.Parameter
    group: str
    tower: str
    up: bool


def owned_parameters(model: nn.Module) -> list[Owned]:
    """Trainable parameters with what their learning rate depends on, asked of the modules that own them.

    Raises:
        ValueError: a trainable parameter that belongs to no adapter.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    towers = find_parts(base)
    owner: dict[int, tuple[str, str]] = {}
    ups: set[int] = set()
    for place, module in base.named_modules():
        if not isinstance(module, BaseTunerLayer | ModulesToSaveWrapper):
            continue
        tower = kind_of(towers, place)
        if isinstance(module, LimeLayer):
            for name in module.lime_settings:
                for group, parameters in module.grouped_parameters(name).items():
                    owner.update({id(p): (group, tower) for p in parameters})
                ups |= {id(p) for p in module.up_parameters(name)}
        else:
            for p in base.get_submodule(place).parameters():
                owner.setdefault(id(p), ("peft", tower))
            ups |= {id(p) for p in getattr(module, "lora_B", nn.Module()).parameters()}
    owned = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if id(parameter) not in owner:
            raise ValueError(f"{name}: trains, but belongs to no adapter; freeze the base model before adapting it")
        owned.append(Owned(name, parameter, *owner[id(parameter)], id(parameter) in ups))
    return owned


def parameter_groups(model: nn.Module) -> dict[str, list[tuple[str, nn.Parameter]]]:
    """Trainable parameters by optimiser group.

    Returns:
        `modulators` and `peft` (`Owned.group`); each entry is the parameter's full name and the parameter.

    Raises:
        ValueError: a trainable parameter that belongs to no adapter.
    """
    groups: dict[str, list[tuple[str, nn.Parameter]]] = {"modulators": [], "peft": []}
    for each in owned_parameters(model):
        groups[each.group].append((each.name, each.parameter))
    return groups
