"""Training on chosen tasks and modalities, with weights and a temperature."""

from __future__ import annotations

import json
import shutil
from collections import Counter

import numpy as np
import pytest

from lime.data.config import DataConfig
from lime.data.datamodule import MMTDataModule
from lime.data.mixing import Mixture
from lime.data.rows import DataError, MMTDataset
from lime.data.sampler import LengthBucketSampler, ResumableLoader
from lime.processors.families import load_processor
from tests.config.line import line
from tests.data import tiny

A, B, C = ("glue_test_sst2", "sst2", "glue", "text"), ("glue_test_cola", "cola", "glue", "text"), ("video",)
ROWS = [A] * 60 + [B] * 30 + [C] * 10
LENGTHS = [5 + 7 * i % 11 for i in range(len(ROWS))]
KINDS = [source[-1] for source in ROWS]


@pytest.fixture(scope="module")
def processor():
    return load_processor(tiny.checkpoint("llava_onevision"), "llava_onevision")


@pytest.fixture
def named(root, tmp_path):
    """A root that says of which task each training row is: 8 texts, 8 pictures, 8 clips."""
    copy = shutil.copytree(root, tmp_path / "named")
    tasks = ["sst2", "glue_test_qqp"] * 4 + ["caltech101"] * 8 + ["action_sequence"] * 8
    (copy / "manifest.json").write_text(json.dumps({"train_tasks": tasks}))
    return copy


@pytest.fixture
def make(processor):
    def build(root, **options):
        config = DataConfig(**{"name": "mmt47", "root": str(root), "validation_fraction": 0.0, **options})
        assert config.errors() == []
        data = MMTDataModule(
            config, batch_size=4, eval_batch_size=4, seed=0, processor=processor, family="llava_onevision"
        )
        data.setup("fit")
        return data

    return build


def test_without_a_mixture_batches_are_those_of_before():
    lengths = [(7 * i) % 11 + 3 for i in range(13)]
    assert LengthBucketSampler(lengths, 3, seed=5).batches(1) == [
        [1, 9, 6], [7, 4, 12], [5, 2, 10], [3], [0, 11, 8]
    ]  # fmt: skip
    kinds = ["text" if i % 3 else "video" for i in range(13)]
    replica = LengthBucketSampler(lengths, 3, seed=5, rank=1, replicas=2, kinds=kinds)
    assert replica.batches(2) == [[4, 1], [2, 10, 7], [6, 3]]


@pytest.mark.parametrize(
    ("weights", "temperature", "counts"),
    [
        ({}, 1.0, [60, 30, 10]),
        ({"glue": 2.0}, 1.0, [63, 32, 5]),  # 120, 60 and 10 of 190
        ({"glue": 0.5, "cola": 3.0}, 1.0, [23, 69, 8]),  # 30, 90 and 10 of 130: the narrowest name counts
        ({"text": 0.0}, 1.0, [0, 0, 10]),
        ({"video": 6.0}, 1.0, [40, 20, 40]),
        ({}, 2.0, [47, 34, 19]),  # square roots: 7.75, 5.48, 3.16 of 16.38
        ({}, 1e9, [34, 33, 33]),
        ({}, 1e-3, [100, 0, 0]),
    ],
)
def test_an_epoch_has_rows_in_proportion(weights, temperature, counts):
    mixture = Mixture(ROWS, weights, temperature)
    assert [mixture.counts.get(source, 0) for source in (A, B, C)] == counts
    drawn = mixture.draw(np.random.default_rng(1)).tolist()
    assert [sum(ROWS[i] == source for i in drawn) for source in (A, B, C)] == counts
    for source in (A, B, C):
        times = Counter({i: 0 for i in range(len(ROWS)) if ROWS[i] == source})
        times.update(i for i in drawn if ROWS[i] == source)
        assert max(times.values()) - min(times.values()) <= 1, "no row twice more often than another"


def test_rows_are_drawn_anew_each_epoch_and_the_same_for_a_seed():
    def sampler(seed=3):
        return LengthBucketSampler(LENGTHS, 4, seed, mixture=Mixture(ROWS, {"sst2": 0.25}, 1.0))

    def rows(epoch):
        return sorted(i for batch in sampler().batches(epoch) for i in batch)

    assert sampler().batches(2) == sampler().batches(2) != sampler(4).batches(2)
    assert rows(0) != rows(1)
    assert len(rows(0)) == len(ROWS)


@pytest.mark.parametrize("kinds", [None, KINDS])
def test_replicas_share_a_mixture_evenly(kinds):
    mixture = Mixture(ROWS, {"video": 5.0}, 1.0)
    parts = [LengthBucketSampler(LENGTHS, 4, rank=rank, replicas=3, kinds=kinds, mixture=mixture) for rank in range(3)]
    for epoch in range(3):
        dealt = [part.batches(epoch) for part in parts]
        assert {len(batches) for batches in dealt} == {len(parts[0])}
        whole = LengthBucketSampler(LENGTHS, 4, kinds=kinds, mixture=mixture).batches(epoch)
        drawn = Counter(i for batch in whole for i in batch)
        assert {i for batches in dealt for batch in batches for i in batch} == set(drawn)
        assert Counter(KINDS[i] for i in drawn.elements()) == {"text": 64, "video": 36}
        if kinds:
            assert all(len({KINDS[i] for batches in step for i in batches}) == 1 for step in zip(*dealt, strict=True))


def test_a_loader_of_a_mixture_goes_on_where_it_stood_and_refuses_another():
    def loader(weights):
        sampler = LengthBucketSampler(LENGTHS, 4, seed=5, mixture=Mixture(ROWS, weights, 2.0) if weights else None)
        return ResumableLoader(list(range(len(ROWS))), sampler)

    whole = loader({"video": 2.0})
    full = [[batch.tolist() for batch in whole] for _ in range(2)]
    first = loader({"video": 2.0})
    stream = iter(first)
    taken = [next(stream).tolist() for _ in range(3)]
    state = first.state_dict()
    stream.close()
    second = loader({"video": 2.0})
    second.load_state_dict(state)
    assert [taken + [batch.tolist() for batch in second], [batch.tolist() for batch in second]] == full
    for other in ({"video": 3.0}, None):
        with pytest.raises(ValueError, match="cannot resume: the checkpoint was written with drawn="):
            loader(other).load_state_dict(state)
    of_before = loader(None).state_dict()
    del of_before["drawn"]  # of a checkpoint that was written before there were mixtures
    loader(None).load_state_dict(of_before)


def test_rows_are_chosen_by_modality_wherever_they_come_from(make, root):
    data = make(root, tasks=["text", "video"], validation_fraction=0.2)
    assert {row.source_type for row in [*data.train_rows, *data.val_rows]} == {"text", "video"}
    assert data.epoch_rows == Counter(row.source_type for row in data.train_rows)
    assert len(data.train_rows) + len(data.val_rows) == 16
    assert len(make(root, tasks="image", train_rows=3).train_rows) == 3


def test_rows_are_chosen_and_weighed_by_task_where_the_root_says_it(make, named):
    data = make(named, tasks=["qqp", "image"])
    assert data.epoch_rows == {"glue_test_qqp": 4, "image_test_caltech101": 8}
    assert {row.index for row in data.train_rows} == {1, 3, 5, 7, *range(8, 16)}
    assert make(named, tasks=["glue"]).epoch_rows == {"glue_test_sst2": 4, "glue_test_qqp": 4}
    weighed = make(named, weights={"glue": 3.0, "qqp": 1.0, "video": 0.0})
    assert weighed.epoch_rows == {"glue_test_sst2": 8, "glue_test_qqp": 3, "image_test_caltech101": 5}
    batches = list(weighed.train_dataloader())
    assert sum(len(batch["rows"]) for batch in batches) == 16
    assert Counter(row.source_type for batch in batches for row in batch["rows"]) == {"text": 11, "image": 5}
    evened = make(named, temperature=100.0)
    assert sorted(evened.epoch_rows.values()) == [6, 6, 6, 6]
    assert make(named, temperature=1.0).mixture is None


def test_rows_of_ones_own_are_chosen_by_their_tasks(make, tmp_path):
    for part, count in (("train", 12), ("validation", 6), ("test", 4)):
        lines = [f"{part} {n}: is it good?,{'yes' if n % 2 else 'no'},{'ab'[n % 3 > 0]}" for n in range(count)]
        (tmp_path / f"{part}.csv").write_text("\n".join(["question,answer,task", *lines]) + "\n")
    (tmp_path / "tasks.yaml").write_text("tasks: [{split: a, answer_type: yes_no}, {split: b, answer_type: yes_no}]\n")
    data = make(tmp_path, name="own", tasks=["b"])
    assert data.epoch_rows == {"b": 8}
    assert len(data.val_rows) == 4
    assert make(tmp_path, name="own", weights={"a": 2.0}).epoch_rows == {"a": 6, "b": 6}
    with pytest.raises(DataError, match=r"data\.tasks: c: .* no usable training row of it; it has a, "):
        make(tmp_path, name="own", tasks=["c"])


def test_what_is_not_known_or_not_there_is_told(make, root, named):
    for options in ({"tasks": ["video", "sst2"]}, {"weights": {"glue": 2.0}}):
        with pytest.raises(DataError, match=r"(sst2|glue): .* does not say of which task each training row is; name"):
            make(root, **options)
    with pytest.raises(DataError, match=r"data\.tasks: svhn: .* no usable training row of it; it has glue_test_sst2"):
        make(named, tasks=["svhn"])
    with pytest.raises(ValueError, match=r"data\.weights: 0 for every training row"):
        make(root, weights={"text": 0, "image": 0, "video": 0})
    for content, said in (
        (["sst2"], "expected a list of 24 names"),
        (["sst2"] * 23 + ["sst3"], "row train/23: 'sst3' is no task"),
    ):
        (named / "manifest.json").write_text(json.dumps({"train_tasks": content}))
        with pytest.raises(DataError, match=rf"manifest\.json: train_tasks: {said}"):
            _ = MMTDataset(named).row_tasks


def test_options_are_checked_before_the_data_are_opened():
    outcome = line("data.tasks=[sst2,glue,video]", "data.weights={glue:2.0,qqp:0.5}", "data.temperature=2")
    config = outcome.runs[0][0].data
    assert (config.tasks, config.weights, config.temperature) == (
        ["sst2", "glue", "video"], {"glue": 2.0, "qqp": 0.5}, 2.0
    )  # fmt: skip
    said = line("data.tasks=[sst3]", "data.weights={glu:-1}", "data.temperature=0").said
    assert "data.tasks: sst3: no task, category or modality; did you mean sst2?" in said
    assert "data.weights: glu: no task, category or modality; did you mean glue?" in said
    assert "data.weights.glu: expected 0 or more, got -1.0" in said
    assert "data.temperature: expected a number above 0, got 0.0" in said
    assert "data.tasks: expected null (all) or at least one name" in line("data.tasks=[]").said
