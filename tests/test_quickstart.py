"""The published quick start, as printed but for its import lines, on the embedded backbone."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lime
from lime.models.loading import load_backbone
from lime.processors.config import ModelConfig
from lime.quickstart import LiMEArguments, LiMETrainer, apply_peft, print_lime_summary
from tests.tuner import small_models as small

embedded = pytest.mark.skipif(
    not (Path(ModelConfig().location) / "model.safetensors").is_file(), reason="the embedded backbone is not there"
)
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "out_proj"]


class Rows(torch.utils.data.Dataset):  # type: ignore[type-arg]
    def __init__(self, processor: Any):
        texts = [f"{'word ' * (2 + i)}is blue" for i in range(10)]
        self.rows = [processor(text=[text], return_tensors="pt")["input_ids"][0] for text in texts]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": self.rows[index]}


def collate(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    ids = nn.utils.rnn.pad_sequence([row["input_ids"] for row in rows], batch_first=True, padding_value=0)
    real = torch.arange(ids.shape[1]) < torch.tensor([[len(row["input_ids"])] for row in rows])
    return {"input_ids": ids, "attention_mask": real.long(), "labels": ids.masked_fill(~real, -100)}


@embedded
def test_the_quick_start_as_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    backbone = load_backbone(ModelConfig("tiny_llava_onevision"))
    model, processor = backbone.model, backbone.processor
    twin = copy.deepcopy(model)
    torch.manual_seed(0)
    with pytest.warns(UserWarning, match="without effect") as said:
        model = apply_peft(  # type: ignore[assignment]
            model,
            targets=["q_proj", "k_proj", "v_proj", "o_proj", "out_proj"],
            num_experts=4,
            rank=2,
            use_shared_LiME=True,
            n_gram=1,
            top_k=1,
            rep_mode="token",
            jitter_noise=0.1,
            tokenizer=processor.tokenizer,
            temperature=0.5,
            gamma_routing=0.7,
            auto_topk=True,
            auto_topk_threshold=0.5,
        )
    (warning,) = [str(one.message) for one in said if "without effect" in str(one.message)]
    assert all(name in warning for name in ("rep_mode", "tokenizer", "top_k"))
    assert "targets" not in warning
    print_lime_summary(model)
    assert "vision_tower" in capsys.readouterr().out

    # what the page describes, in this package's words
    torch.manual_seed(0)
    expected, _ = lime.apply(
        twin, target_modules=TARGETS, scope="both", num_experts=4, r=2, n_gram=1, jitter_noise=0.1, temperature=0.5,
        gamma_routing=0.7, selection="auto", auto_topk_threshold=0.5, shared_modulator=True,
    )  # fmt: skip
    assert model.peft_config["default"].settings() == expected.peft_config["default"].settings()
    for (name, one), (_, other) in zip(model.named_parameters(), expected.named_parameters(), strict=True):
        assert torch.equal(one, other), name

    train_dataset = Rows(processor)
    with pytest.warns(UserWarning, match=r"LiMEArguments: without effect here: learning_rate \(the two groups"):
        args = LiMEArguments(
            output_dir=str(tmp_path),
            per_device_train_batch_size=5,
            gradient_accumulation_steps=4,
            num_train_epochs=4,
            bf16=True,
            learning_rate=2e-4,
            moe_lr=1e-3,
            peft_lr=4e-4,
            importance_coef=0.1,
            kl_coef=0.01,
            balance_every_n_steps=50,
        )
    args.report_to, args.disable_tqdm, args.save_strategy, args.logging_steps = [], True, "no", 1
    trainer = LiMETrainer(
        model=model,
        args=args,
        train_dataset=train_dataset,
        tokenizer=processor.tokenizer,
        data_collator=collate,
    )
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    trainer.train()
    assert trainer.state.global_step == 4
    assert trainer.processing_class is processor.tokenizer
    assert {group["name"]: group["initial_lr"] for group in trainer.optimizer.param_groups} == {  # type: ignore[union-attr]
        "modulators": 1e-3, "peft": 4e-4,
    }  # fmt: skip
    logs = trainer.state.log_history[:-1]
    assert all("loss/importance" in log for log in logs), "recorded on every step, applied on one in fifty"
    assert any(not torch.equal(p, before[name]) for name, p in model.named_parameters() if p.requires_grad)
    tokens = model.eval().generate(**processor(text=["the sky is"], return_tensors="pt"), max_new_tokens=3)
    assert tokens.shape[1] > 3


def test_arguments_of_their_scripts() -> None:
    with pytest.warns(UserWarning, match=r"logging_dir .*; peft_type .*; optim adamw_bnb_8bit"):
        args = LiMEArguments(
            output_dir="x",
            logging_dir="logs",
            peft_type="auto",
            optim="adamw_bnb_8bit",
            warmup_ratio=0.05,
            report_to=[],
        )
    assert args.warmup_steps == 0.05
    assert "torch" in args.optim
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        LiMEArguments(output_dir="x", report_to=[])


def layers(**options: Any) -> set[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = apply_peft(small.build("llava_onevision"), **options)  # type: ignore[arg-type]
    return {layer.key for layer in small.lime_layers(model)}


def test_targets_as_in_their_function() -> None:
    base = small.build("llava_onevision")
    linears = {name for name, module in base.named_modules() if isinstance(module, nn.Linear)}
    inside = {name for name in linears if "language_model" in name or "vision_tower" in name}
    assert layers(targets=None) == inside
    assert layers(targets=["proj"]) == {name for name in inside if name.endswith("proj")}
    assert layers(targets=lambda path, module: path.endswith("fc1")) == {n for n in inside if n.endswith("fc1")}
    assert layers(targets=["q_proj", "nowhere"]) == {name for name in inside if name.endswith("q_proj")}
    with pytest.warns(UserWarning, match=r"targets nowhere \(no such linear layers in LlavaOnevision"):
        apply_peft(small.build("llava_onevision"), targets=["o_proj", "nowhere"])
    with pytest.raises(ValueError, match=r"targets: \['nowhere'\] match no linear layer"):
        layers(targets=["nowhere"])


def test_what_would_be_another_thing_is_refused() -> None:
    base = small.build("llava_onevision")
    for options, message in (
        ({"rep_mode": "mean"}, "rep_mode: expected 'token'"),
        ({"peft_dtype": torch.bfloat16}, r"peft_dtype: expected torch\.float32"),
        ({"num_experts": 1000}, "num_experts: 1000 experts need"),
        ({"temperature": -1.0}, "temperature"),
    ):
        with pytest.raises(ValueError, match=message):
            apply_peft(base, **options)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="no argument 'experts'"):
        apply_peft(base, experts=4)


def test_a_fixed_number_of_experts() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # everything given has an effect
        model = apply_peft(
            small.build("qwen2_vl"), auto_topk=False, top_k=1, targets=["q_proj"], moe_dtype=torch.float32
        )
    config: Any = model.peft_config["default"]
    assert (config.selection, config.top_k, config.scope) == ("topk", 1, "language_model")
