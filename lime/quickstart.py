"""The quick start of the LiME page and of the authors' repository, as printed there but for its import lines.

    from lime.quickstart import LiMEArguments, LiMETrainer, apply_peft, print_lime_summary

    model = apply_peft(model, targets=["q_proj", "k_proj", "v_proj", "o_proj", "out_proj"], num_experts=4, rank=2, …)
    args = LiMEArguments(output_dir="out", bf16=True, learning_rate=2e-4, moe_lr=1e-3, peft_lr=4e-4, …)
    LiMETrainer(model=model, args=args, train_dataset=rows, tokenizer=tokenizer, data_collator=collate).train()

It computes what the page describes: Eq. 1 to 5 with hard sets of experts, each token routed by itself, and the balance
losses with the coefficients as given, on one step in `balance_every_n_steps`. (The authors' code has soft sets, one
norm for a whole batch and a further factor of 0.01: `lime.apply(model, preset="authors", …)`, `docs/method.md`.) One
warning names what has no effect here. Programs of your own are better off with `lime.apply` and
`lime.integrations.trainer`, where such an argument is an error.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import is_bitsandbytes_available

from lime.integrations.trainer import LimeTrainer, LimeTrainingArguments
from lime.tuner.api import apply
from lime.tuner.presets import preset_settings
from lime.tuner.reporting import report
from lime.tuner.towers import find_towers

__all__ = ["LiMEArguments", "LiMETrainer", "apply_peft", "print_lime_summary"]

_FLOAT32 = (None, torch.float32, "float32")
_OF_THEIR_CODE = ("track_aux", "preserve_tying", "use_compile", "sparse_mode", "pad_token_id", "LiME_init_std")
"""Arguments of the authors' function that change nothing in what is computed here."""


def apply_peft(
    model: PreTrainedModel,
    targets: Iterable[str] | Callable[[str, nn.Module], bool] | None = None,
    num_experts: int = 4,
    rank: int = 2,
    *,
    alpha: float = 16.0,
    dropout: float = 0.0,
    use_shared_LiME: bool = True,
    n_gram: int = 1,
    top_k: int | None = None,
    rep_mode: str | None = None,
    jitter_noise: float = 0.1,
    tokenizer: Any = None,
    temperature: float = 0.5,
    gamma_routing: float = 0.7,
    auto_topk: bool = True,
    auto_topk_threshold: float = 0.5,
    peft_dtype: Any = None,
    moe_dtype: Any = None,
    **others: Any,
) -> PeftModel:
    """Adapt a model with LiME over LoRA, as `lime.apply` does; the model alone is returned.

    The other arguments are as in `lime.tuner.LimeSettings`, under the page's names, with the defaults of its table.

    Args:
        model: a model of transformers; its layers are replaced in place.
        targets: ends of names of linear layers, in the language model and in the vision tower; or a function of a
            layer's name and the layer; all linear layers of both when absent. Names that match nothing are left out.
        top_k: number of experts where `auto_topk` is off; 1 when absent.
        tokenizer: without effect, as padding is read from the attention mask.
        rep_mode: without effect, as routing is by token.
        peft_dtype: without effect, as adapters are float32.
        moe_dtype: without effect, for the same reason.

    Raises:
        ValueError: options out of range, targets that match nothing at all, or another `rep_mode` or dtype.
        TypeError: an argument that the page does not have.
    """
    if unknown := sorted(others.keys() - set(_OF_THEIR_CODE)):
        raise TypeError(f"apply_peft() has no argument {unknown[0]!r}")
    if rep_mode not in (None, "token"):
        raise ValueError(f"rep_mode: expected 'token', got {rep_mode!r}; routing is by token, windows are n_gram")
    for name, dtype in (("peft_dtype", peft_dtype), ("moe_dtype", moe_dtype)):
        if dtype not in _FLOAT32:
            raise ValueError(f"{name}: expected torch.float32, got {dtype}; adapters are float32 whatever the base's")
    idle = [] if rep_mode is None else ["rep_mode (routing is by token)"]
    if tokenizer is not None:
        idle.append("tokenizer (padding is read from the attention mask)")
    if auto_topk and top_k is not None:
        idle.append("top_k (auto_topk chooses the number of experts)")
    idle += sorted(others)
    chosen, scope, unmatched = _targets(model, targets)
    if unmatched:
        idle.append(f"targets {', '.join(unmatched)} (no such linear layers in {type(model).__name__})")
    selection: dict[str, Any] = {"auto_topk_threshold": auto_topk_threshold} if auto_topk else {"top_k": top_k or 1}
    settings = preset_settings(
        target_modules=chosen, scope=scope, num_experts=num_experts, rank=rank, alpha=alpha, dropout=dropout,
        use_shared_LiME=use_shared_LiME, n_gram=n_gram, jitter_noise=jitter_noise, temperature=temperature,
        gamma_routing=gamma_routing, auto_topk=auto_topk, **selection,
    )  # fmt: skip
    _warn("apply_peft", idle)
    adapted, _ = apply(model, settings)
    return adapted


def _targets(model: nn.Module, targets: Any) -> tuple[Any, str, list[str]]:
    """Targets in this package's terms, the scope of the towers that have them, and names that match nothing."""
    towers = find_towers(model)
    linears = {
        name: tower
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        for tower in towers
        if tower.holds(name)
    }
    unmatched: list[str] = []
    chosen: Any
    if targets is None:
        chosen, matched = "all-linear", list(linears)
    elif callable(targets):
        chosen = matched = [name for name in linears if targets(name, model.get_submodule(name))]
    else:
        wanted = [targets] if isinstance(targets, str) else list(targets)
        unmatched = [one for one in wanted if not any(name.endswith(one) for name in linears)]
        wanted = [one for one in wanted if one not in unmatched]
        matched = [name for name in linears if name.endswith(tuple(wanted))]
        whole = all(any(name == one or name.endswith("." + one) for one in wanted) for name in matched)
        chosen = wanted if whole else matched  # names that end within a part of theirs are given in full
    if not matched:
        raise ValueError(f"targets: {targets!r} match no linear layer of {type(model).__name__}")
    kinds = {linears[name].kind for name in matched}
    return chosen, "both" if len(kinds) > 1 else kinds.pop(), unmatched


def _warn(of: str, idle: list[str]) -> None:
    if idle:
        warnings.warn(f"{of}: without effect here: {'; '.join(idle)}", stacklevel=3)


class LiMEArguments(LimeTrainingArguments):
    """`LimeTrainingArguments` with the page's arguments: `learning_rate` has no effect, as the two groups have `moe_lr`
    and `peft_lr`; `warmup_ratio` is `warmup_steps`; without an accelerator training is on the CPU, and without
    bitsandbytes its 8-bit AdamW is torch's."""

    def __init__(self, *args: Any, **kwargs: Any):
        idle = []
        for name, why in _IDLE_ARGUMENTS.items():
            if kwargs.pop(name, None) is not None:
                idle.append(f"{name} ({why})")
        if "warmup_ratio" in kwargs:
            kwargs["warmup_steps"] = kwargs.pop("warmup_ratio")
        if "bnb" in str(kwargs.get("optim", "")) and not is_bitsandbytes_available():
            idle.append(f"optim {kwargs.pop('optim')} (bitsandbytes is not installed; it is torch's AdamW)")
        if not torch.accelerator.is_available():
            kwargs.setdefault("use_cpu", True)
        _warn("LiMEArguments", idle)
        super().__init__(*args, **kwargs)


_IDLE_ARGUMENTS = {
    "learning_rate": "the two groups have moe_lr and peft_lr",
    "logging_dir": "report_to chooses the logger",
    "peft_type": "read off the model",
}


class LiMETrainer(LimeTrainer):
    """`LimeTrainer` that takes the tokenizer under the page's name."""

    def __init__(self, model: Any = None, args: Any = None, *, tokenizer: Any = None, **kwargs: Any):
        if tokenizer is not None:
            kwargs.setdefault("processing_class", tokenizer)
        super().__init__(model=model, args=args, **kwargs)


def print_lime_summary(model: nn.Module) -> None:
    """Print the adapted layers and their parameters."""
    sys.stdout.write(f"{report(model)}\n")
