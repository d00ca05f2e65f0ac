"""What the benchmarks count and compare; their times are not judged here."""

from __future__ import annotations

import dataclasses
import json
from importlib import import_module
from pathlib import Path

import pytest
import torch
from torch import nn

from lime.analysis.benchmark import COMMANDS, decode, growth, layer, models, step
from lime.analysis.benchmark.counting import LiveTensors, Traffic, kept_storages
from lime.analysis.benchmark.forms import Subject, shared_copy, trainable
from lime.analysis.benchmark.options import command_line, parse
from lime.analysis.benchmark.record import SCHEMA, Column, load, markdown, record, save
from lime.analysis.benchmark.timing import Spread, interleaved, ratios
from lime.tuner.settings import LimeSettings

TINY = LimeSettings(target_modules=["proj"])


def one_layer(subject: str, variant: str = "plain", dtype: torch.dtype = torch.float32) -> dict[str, float]:
    torch.manual_seed(0)
    base = nn.Linear(96, 64).to(dtype)
    settings = dataclasses.replace(TINY, **layer.VARIANTS[variant])
    return layer.counts(lambda tokens: layer.Case(base, Subject.of(subject), settings, variant, tokens, 0), 64)


# -- timing --------------------------------------------------------------------------------------------------


def test_every_repetition_runs_every_subject_beginning_with_another() -> None:
    order: list[str] = []
    subjects = {name: (lambda name=name: order.append(name)) for name in "abc"}
    seconds = interleaved(subjects, 3, warmup=1)
    assert {name: len(times) for name, times in seconds.items()} == {"a": 3, "b": 3, "c": 3}
    rounds = [order[start : start + 3] for start in range(0, 12, 3)]
    assert all(sorted(one) == ["a", "b", "c"] for one in rounds)
    assert len({one[0] for one in rounds}) == 3


def test_ratios_are_medians_of_each_repetitions_ratio() -> None:
    found = ratios({"slow": [2.0, 30.0, 4.0], "fast": [1.0, 10.0, 4.0]}, "fast")
    assert found["slow"] == Spread(2.0, 1.5, 2.5)
    assert found["fast"] == Spread(1.0, 1.0, 1.0)
    with pytest.raises(ValueError, match="at least one"):
        interleaved({}, 3)


# -- counts --------------------------------------------------------------------------------------------------


def test_lora_keeps_its_rank_space_and_makes_sixteen_passes() -> None:
    counts = one_layer("lora")
    assert counts["kept_per_token"] == 2 * 4  # A x, float32
    # forward: A reads x; B writes; scaled; added. backward: scaled; B's, A's and the input's gradients; added
    wide = (2 * 96 + (1 + 2 + 3) * 64 + (2 + 2) * 64 + 4 * 96) / 64
    assert wide == pytest.approx(counts["passes"] - one_layer("frozen")["passes"], abs=0.5)


def test_a_frozen_layer_keeps_nothing_and_moves_input_output_and_their_gradients() -> None:
    counts = one_layer("frozen")
    assert counts["kept_per_token"] == 0
    assert counts["passes"] == pytest.approx((2 * 96 + 2 * 64) / 64)


@pytest.mark.parametrize("variant", [*layer.VARIANTS])
def test_lime_keeps_less_than_a_wide_array(variant: str) -> None:
    counts = one_layer("lime_lora", variant)
    written_out = one_layer("lime_lora:terms", variant)
    assert counts["passes"] < written_out["passes"]
    assert counts["kept_per_token"] < written_out["kept_per_token"]
    if variant != "dropout":
        assert counts["kept_per_token"] <= 64 * 4


def test_terms_and_loop_compute_what_the_package_computes() -> None:
    x, mask = torch.randn(1, 8, 48), torch.ones(1, 8, dtype=torch.long)
    settings = dataclasses.replace(TINY, jitter_noise=0.0)
    for name in ("lime_lora", "moe_lora"):
        made_here = f"{name}:{'terms' if name == 'lime_lora' else 'loop'}"
        torch.manual_seed(0)
        base = nn.Linear(48, 32)
        ours = Subject.of(name).adapt(layer.Tower(shared_copy(base)), settings)
        other = Subject.of(made_here).adapt(layer.Tower(shared_copy(base)), settings)
        shapes = sorted(tuple(p.shape) for p in trainable(ours))
        numbers = sum(p.numel() for p in trainable(other))
        assert numbers == sum(p.numel() for p in trainable(ours)), shapes
        out = [model(inputs_embeds=x, attention_mask=mask) for model in (ours, other)]
        torch.testing.assert_close(out[0], out[1])  # the update is zero at the start


def test_the_loop_is_the_mixture_in_one_product() -> None:
    """The same numbers in both: a loop over the experts and the batched form agree."""
    torch.manual_seed(0)
    base = nn.Linear(48, 32)
    settings = dataclasses.replace(TINY, num_experts=3)
    batched = Subject.of("moe_lora").adapt(layer.Tower(shared_copy(base)), settings)
    loop = Subject.of("moe_lora:loop").adapt(layer.Tower(shared_copy(base)), settings)
    own, experts = batched.get_submodule("base_model.model.proj"), loop.get_submodule("proj")
    delta = own.lime_delta["default"]
    with torch.no_grad():
        delta.B.normal_()
        experts.router.copy_(own.lime_router["default"].weight)
        for index, one in enumerate([*experts.experts, experts.shared]):
            one.A.copy_(delta.A[2 * index : 2 * index + 2])
            one.B.copy_(delta.B[:, 2 * index : 2 * index + 2])
    x = torch.randn(1, 8, 48)
    torch.testing.assert_close(loop(inputs_embeds=x), batched(inputs_embeds=x))


def test_traffic_counts_reads_and_writes_but_no_views() -> None:
    a, b = torch.ones(4, 8), torch.ones(8)
    with Traffic() as traffic:
        a.t().reshape(8, 4)[1:]
    assert traffic.elements == 0
    with Traffic() as traffic:
        a + b.expand(4, 8)
    assert traffic.elements == 32 + 8 + 32  # a broadcast vector is read once
    with Traffic() as traffic:
        a.add_(1.0)
    assert traffic.elements == 64


def test_live_tensors_follow_what_is_freed() -> None:
    with LiveTensors() as tensors:
        first = torch.zeros(1024)
        view = first[::2]
        del first
        second = torch.zeros(256)
        assert tensors.live == 4 * (1024 + 256)
        del view, second
        assert tensors.live == 0
        torch.zeros(512).add_(1.0)
    assert (tensors.live, tensors.peak) == (0, 4 * (1024 + 256))


def test_kept_storages_leave_out_weights_and_input() -> None:
    linear, x = nn.Linear(4, 4), torch.randn(3, 4, requires_grad=True)
    with kept_storages(linear, x) as kept:
        out = linear(x).exp()
    assert list(kept.values()) == [out.untyped_storage().nbytes()]


# -- subjects and options ------------------------------------------------------------------------------------


def test_unknown_subjects_are_named() -> None:
    with pytest.raises(ValueError, match="unknown method 'lime_any'"):
        Subject.of("lime_any")
    with pytest.raises(ValueError, match="unknown form 'lora:loop'"):
        Subject.of("lora:loop")


def test_a_shared_copy_adapts_without_copying_the_weights() -> None:
    base = models.build(models.QWEN2_896, layers=1)
    copy = shared_copy(base)
    Subject.of("lime_lora").adapt(copy, LimeSettings())
    assert not trainable(base)
    assert copy.get_input_embeddings().weight is base.get_input_embeddings().weight


def test_every_command_has_options_and_a_run() -> None:
    for command in COMMANDS:
        module = import_module(f"lime.analysis.benchmark.{command}")
        assert command_line(command, module.Options()) == f"python scripts/benchmark.py {command}"
        assert callable(module.run)


def test_options_are_checked_all_at_once() -> None:
    values = dataclasses.asdict(layer.Options()) | {"tokens": "12,many", "dtypes": "float8", "experts": "2,4"}
    with pytest.raises(ValueError, match=r"--tokens: expected a whole number.*--dtypes: expected one of float32"):
        parse(layer.Options, values)
    options = parse(layer.Options, values | {"tokens": "12,24", "dtypes": "bfloat16"})
    assert (options.tokens, options.experts, options.dtypes) == ((12, 24), (2, 4), ("bfloat16",))
    assert command_line("layer", options) == (
        "python scripts/benchmark.py layer --tokens 12,24 --dtypes bfloat16 --experts 2,4"
    )


# -- records -------------------------------------------------------------------------------------------------


def test_a_record_is_kept_with_its_table_and_read_again(tmp_path: Path) -> None:
    rows = [{"method": "lora", "ms": Spread(1.0, 0.5, 2.0), "count": None}, {"method": "x", "ms": None, "count": None}]
    columns = (Column("method", "method"), Column("ms", "ms", ".1f"), Column("count", "count"))
    content = record("layer", layer.Options(), columns, rows, notes=["Said below."])
    table = save(content, tmp_path / "one" / "layer.json")
    assert load(tmp_path / "one" / "layer.json") == content
    assert content["schema"] == SCHEMA
    lines = table.read_text(encoding="utf-8").splitlines()
    assert lines[:4] == ["| method | ms |", "|---|---:|", "| lora | 1.0 (0.5 to 2.0) |", "| x | - |"]
    assert "`python scripts/benchmark.py layer`" in lines
    assert lines[-1] == "- Said below."
    assert str(tmp_path) not in json.dumps(content)


def test_other_files_are_no_records(tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match="not valid JSON"):
        load(path)
    path.write_text('{"schema": "lime-benchmark/9"}', encoding="utf-8")
    with pytest.raises(ValueError, match="expected a record of format lime-benchmark/1, found 'lime-benchmark/9'"):
        load(path)


# -- whole commands, small -----------------------------------------------------------------------------------


def test_layer() -> None:
    options = layer.Options(shapes=("48x32",), tokens=(8,), variants=("plain", "balance"), repetitions=1)
    content = layer.run(options)
    assert [row["method"] for row in content["rows"]] == 2 * list(options.methods)
    lora, lime = content["rows"][1], content["rows"][2]
    assert lora["vs_lora"] == {"median": 1.0, "q1": 1.0, "q3": 1.0}
    assert lora["trainable"] == 2 * (48 + 32)
    assert lime["trainable"] == 2 * (48 + 32) + 4 * 32 + 32 + 1
    assert "| 48x32 |" in markdown(content)
    with pytest.raises(ValueError, match="D_INxD_OUT"):
        layer.run(dataclasses.replace(options, shapes=("48",)))


def test_step_counts_and_compares() -> None:
    options = step.Options(
        architecture="tiny_qwen2vl",
        layers=1,
        methods=("frozen", "lora", "lime_lora", "lime_prompt_tuning", "moe_lora"),
        tokens=6,
        experts=(2, 3),
        accumulate=2,
        balance=True,
        repetitions=1,
    )
    rows = step.run(options)["rows"]
    assert [(row["method"], row["experts"]) for row in rows] == [
        ("frozen", None),
        ("lora", None),
        ("lime_lora", 2),
        ("lime_lora", 3),
        ("lime_prompt_tuning", 2),
        ("lime_prompt_tuning", 3),
        ("moe_lora", 2),
        ("moe_lora", 3),
    ]
    assert rows[0]["trainable"] == 0
    assert rows[1]["kept_vs_lora"] == 1.0
    assert rows[1]["optimiser_mib"] == 2 * 4 * rows[1]["trainable"] / 2**20
    assert all(row["peak_mib"] >= row["kept_mib"] > 0 for row in rows)
    growing = rows[3]["trainable"] - rows[2]["trainable"]
    assert growing == 192 + 96 + 96 + 192  # one more modulator for q, k, v and o


def test_decode_and_growth() -> None:
    options = decode.Options(
        architectures=("tiny_llava_onevision",), layers=1, batches=(2,), prompt=4, new_tokens=3, repetitions=1
    )
    rows = decode.run(options)["rows"]
    assert [row["method"] for row in rows] == ["frozen", "lora", "lime_lora"]
    assert rows[1]["rate_vs_lora"]["median"] == 1.0
    content = growth.run(
        growth.Options(
            axes=("tokens", "step_layers"),
            tokens=(4, 8),
            layers=(1, 2),
            shape="16x16",
            architecture="tiny_llava_onevision",
            step_tokens=4,
            threshold=1e9,
            repetitions=1,
        )
    )
    assert [(row["axis"], row["value"]) for row in content["rows"]] == [
        ("tokens", 4),
        ("tokens", 8),
        ("step, layers", 1),
        ("step, layers", 2),
    ]
    assert {row["negligible"] for row in content["rows"]} == {"yes"}
    assert content["notes"][0].startswith("tokens: within ")
    with pytest.raises(ValueError, match="name another"):
        growth.run(growth.Options(method="lora"))
