"""Loaders: order, resuming, the validation part, and rows that cannot be used."""

from __future__ import annotations

import functools
import shutil
import threading
import time

import lightning as pl
import pytest
import torch

from lime.data.collate import OverlongError
from lime.data.config import DataConfig
from lime.data.datamodule import MMTDataModule
from lime.data.media import MediaError
from lime.data.rows import DataError, content_hash
from lime.data.sampler import LengthBucketSampler, ResumableLoader
from lime.processors.families import load_processor
from tests.data import tiny

FAMILY = "llava_onevision"


@pytest.fixture(scope="module")
def processor():
    return load_processor(tiny.checkpoint(FAMILY), FAMILY)


@pytest.fixture
def make(processor, root):
    def build(at=root, batch_size=4, seed=0, **options):
        config = DataConfig(name="mmt47", root=str(at), **{"validation_fraction": 0.2, **options})
        assert config.errors() == []
        return MMTDataModule(
            config, batch_size=batch_size, eval_batch_size=4, seed=seed, processor=processor, family=FAMILY
        )

    return build


def ids(loader):
    taken = [[row.id for row in batch["rows"]] for batch in loader]
    if loader.num_workers:  # its processes stay for another epoch, and would keep this one from ending
        loader._iterator._shutdown_workers()
    return taken


def test_a_sample_of_the_training_rows_is_the_same_every_time(make):
    data = make(validation_fraction=0.0)
    data.one_modality = True
    first, again = list(data.sample_batches(5)), list(data.sample_batches(5))
    assert sum(len(batch["input_ids"]) for batch in first) == 5
    assert all("labels" not in batch and "rows" not in batch for batch in first)
    assert len({frozenset(batch) for batch in first}) > 1, "batches of text alone have no pictures"
    assert all(batch["logits_to_keep"] == 1 for batch in first), "nobody reads the logits of a large vocabulary"
    assert all(torch.equal(a["input_ids"], b["input_ids"]) for a, b in zip(first, again, strict=True))
    everything = list(data.sample_batches())
    assert sum(len(batch["input_ids"]) for batch in everything) == min(100, len(data.train_rows))


# Sampler


def test_every_row_once_an_epoch_in_batches_of_like_length():
    lengths = torch.randint(5, 200, (1003,), generator=torch.Generator().manual_seed(0)).tolist()
    sampler = LengthBucketSampler(lengths, 16, seed=1)
    batches = sampler.batches(0)
    assert sorted(i for batch in batches for i in batch) == list(range(1003))
    assert len(batches) == len(sampler) == 63
    padded = sum(max(lengths[i] for i in b) * len(b) for b in batches)
    assert padded < 1.1 * sum(lengths), "little padding"
    assert batches == LengthBucketSampler(lengths, 16, seed=1).batches(0)
    assert batches != sampler.batches(1)
    assert batches != LengthBucketSampler(lengths, 16, seed=2).batches(0)
    firsts = [max(lengths[i] for i in b) for b in batches]
    assert firsts != sorted(firsts), "batches come in mixed order"


@pytest.mark.parametrize("replicas", [2, 3])
def test_replicas_share_an_epoch_evenly(replicas):
    parts = [LengthBucketSampler(range(1, 41), 4, rank=r, replicas=replicas) for r in range(replicas)]
    dealt = [p.batches(3) for p in parts]
    assert {len(d) for d in dealt} == {len(parts[0])}
    assert {i for d in dealt for b in d for i in b} == set(range(40))


def test_bad_samplers_are_refused():
    with pytest.raises(ValueError, match="batch_size"):
        LengthBucketSampler([1], 0)
    with pytest.raises(ValueError, match="no training rows"):
        LengthBucketSampler([], 1)
    with pytest.raises(ValueError, match="rank"):
        LengthBucketSampler([1], 1, rank=2, replicas=2)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_loader_goes_on_where_its_state_says(workers):
    def loader():
        sampler = LengthBucketSampler(range(1, 31), 4, seed=5)
        return ResumableLoader(list(range(30)), sampler, num_workers=workers)

    whole = loader()
    full = [[b.tolist() for b in whole], [b.tolist() for b in whole]]
    assert full[0] != full[1]
    first = loader()
    stream = iter(first)
    taken = [next(stream).tolist() for _ in range(3)]
    state = first.state_dict()
    second = loader()
    second.load_state_dict(state)
    assert taken + [b.tolist() for b in second] == full[0]
    assert [b.tolist() for b in second] == full[1]


@pytest.mark.parametrize("workers", [0, 1])
def test_loaders_leave_the_global_generator_alone(make, workers):
    data = make(num_workers=workers)
    data.setup()
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    ids(data.train_dataloader())
    ids(data.val_dataloader())
    assert torch.equal(torch.rand(4), expected)


def test_the_next_batches_are_prepared_while_the_consumer_computes():
    made = []

    def collate(items):
        made.append(items)
        return items

    loader = ResumableLoader(list(range(40)), LengthBucketSampler(range(1, 41), 4), collate_fn=collate)
    stream = iter(loader)
    next(stream)
    deadline = time.monotonic() + 60
    while len(made) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(made) == 3, "two ahead, and no more"
    assert loader.state_dict()["position"] == 1, "what is prepared is not yet handed out"
    stream.close()
    assert not any(thread.name.startswith("batches") for thread in threading.enumerate())


def test_an_error_while_preparing_surfaces_in_its_turn():
    def collate(items):
        if 0 in items:
            raise MediaError("x.png", "no such file", "train/0")
        return items

    sampler = LengthBucketSampler(range(1, 41), 4, seed=1)
    before = next(i for i, batch in enumerate(sampler.batches(0)) if 0 in batch)
    stream = iter(ResumableLoader(list(range(40)), sampler, collate_fn=collate))
    taken = [next(stream) for _ in range(before)]
    assert before > 0
    assert len(taken) == before
    with pytest.raises(MediaError, match=r"x\.png \(row train/0\)"):
        next(stream)


def test_a_finished_epoch_resumes_with_the_next():
    one = ResumableLoader(list(range(8)), LengthBucketSampler(range(1, 9), 4))
    stream = iter(one)
    next(stream), next(stream)
    assert one.state_dict()["epoch"] == 1
    assert one.state_dict()["position"] == 0
    limited = ResumableLoader(list(range(8)), LengthBucketSampler(range(1, 9), 4))
    limited.limit = lambda: 1
    next(iter(limited))
    assert limited.state_dict()["epoch"] == 1


def test_a_state_of_other_data_is_refused():
    state = ResumableLoader(list(range(8)), LengthBucketSampler(range(1, 9), 4)).state_dict()
    with pytest.raises(ValueError, match="batch_size=4, this run has 2"):
        ResumableLoader(list(range(8)), LengthBucketSampler(range(1, 9), 2)).load_state_dict(state)


# Module


def test_validation_is_a_fixed_part_of_train(make):
    data = make()
    data.setup()
    train, val = ({row.id for row in rows} for rows in (data.train_rows, data.val_rows))
    assert len(train) + len(val) == 24
    assert val
    assert not train & val
    assert all(name.startswith("train/") for name in train | val)
    other = make(seed=9)
    other.setup()
    assert {row.id for row in other.val_rows} == val
    assert all(content_hash(row) < 0.2 * 2**64 for row in data.val_rows)
    assert sorted(i for batch in ids(data.val_dataloader()) for i in batch) == sorted(val)


def test_limits_take_fixed_parts(make):
    data = make(train_rows=6, rows_per_split=2)
    data.setup()
    assert len(data.train_rows) == 6
    assert len(data.val_rows) == 2
    assert len(data.test_rows("glue_test_sst2")) == 2
    with pytest.raises(DataError, match="no test split 'glue_test_qqp'"):
        data.test_rows("glue_test_qqp")


class Recorder(pl.LightningModule):
    """Learns one number and writes down the rows it sees."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen = []

    def training_step(self, batch, batch_idx):
        self.seen.append([row.id for row in batch["rows"]])
        return (self.weight - len(batch["rows"])) ** 2

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


def fit(data, folder, steps=None, epochs=3, resume=None, **options):
    module = Recorder()
    saver = pl.pytorch.callbacks.ModelCheckpoint(folder, every_n_train_steps=1, save_top_k=-1, filename="{step}")
    trainer = pl.Trainer(
        max_epochs=epochs,
        max_steps=steps or -1,
        accelerator="cpu",
        logger=False,
        callbacks=[saver],
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    trainer.fit(module, datamodule=data, ckpt_path=resume)
    return module.seen


@pytest.mark.parametrize(("limit", "weights"), [(1.0, None), (3, {"video": 2.0})])
def test_a_resumed_fit_sees_what_an_uninterrupted_one_sees(make, tmp_path, limit, weights):
    make = functools.partial(make, weights=weights)
    options = {"limit_train_batches": limit, "limit_val_batches": 0}
    whole = fit(make(), tmp_path / "whole", **options)
    per_epoch = len(whole) // 3
    assert per_epoch >= 3
    for stop in (per_epoch - 1, per_epoch, per_epoch + 1):
        checkpoint = tmp_path / "whole" / f"step={stop}.ckpt"
        rest = fit(make(), tmp_path / f"rest{stop}", resume=str(checkpoint), **options)
        assert whole[:stop] + rest == whole, f"stopped after {stop} of {len(whole)} steps"
    assert whole[:per_epoch] != whole[per_epoch : 2 * per_epoch]


def test_workers_give_the_same_batches(make):
    alone, helped = make(), make(num_workers=1)
    assert ids(alone.train_dataloader()) == ids(helped.train_dataloader())


@pytest.fixture
def damaged(root, tmp_path):
    """One training image missing, one training clip cut, one test clip cut."""
    copy = tmp_path / "damaged"
    shutil.copytree(root, copy)
    (copy / "media" / "train_0.png").unlink()
    for name in ("train_1.mp4", "test_2.mp4"):
        path = copy / "media" / name
        path.write_bytes(path.read_bytes()[:300])
    return copy


def test_missing_media_are_an_error_with_file_row_and_count(make, damaged):
    data = make(damaged)
    with pytest.raises(MediaError, match=r"train_0\.png \(row train/8\): no such file \(1 of \d+ rows of"):
        data.setup()


def test_unreadable_media_are_counted_where_asked(make, damaged, caplog):
    data = make(damaged, on_missing_media="skip", validation_fraction=0.0)
    data.setup()
    assert data.left_out.missing_media["train"] == ["train/8", "train/17"]
    assert len(data.train_rows) == 22
    rows = data.test_rows("video_test_action_sequence")
    assert [row.index for row in rows] == [0, 1, 3]
    assert data.left_out.counts() == {"missing_media": {"train": 2, "video_test_action_sequence": 1}, "overlong": {}}
    assert "2 of 24 rows left out (missing_media)" in caplog.text
    assert "train_1.mp4 (row train/17)" in caplog.text
    assert len([i for batch in ids(data.train_dataloader()) for i in batch]) == 22


def test_overlong_rows_are_an_error_or_counted(make):
    fine = make(validation_fraction=0.0)
    fine.setup()
    lengths = fine.train_lengths
    limit = max(lengths) - 1
    count = sum(n > limit for n in lengths)
    with pytest.raises(OverlongError, match=rf"{count} rows of train are too long.*row train/\d+: {limit + 1} tokens"):
        make(validation_fraction=0.0, max_length=limit).setup()
    dropped = make(validation_fraction=0.0, max_length=limit, on_overlong="drop")
    dropped.setup()
    assert len(dropped.left_out.overlong["train"]) == count
    assert len(dropped.train_rows) == 24 - count


def test_nothing_usable_is_an_error(make):
    with pytest.raises(DataError, match="no usable training row"):
        make(max_length=8, on_overlong="drop").setup()


def test_every_bad_setting_is_named():
    config = DataConfig(
        name="x",
        root=None,
        on_missing_media="ignore",
        on_overlong="cut",
        video_backend="vlc",
        validation_fraction=1.0,
        max_length=0,
        num_workers=-1,
        cache_mb=-1,
        rows_per_split=0,
        train_rows=0,
    )
    config.mini.train_per_task = 0
    keys = [message.split(":")[0] for message in config.errors()]
    assert sorted(keys) == sorted(
        f"data.{key}"
        for key in (
            "name root on_missing_media on_overlong video_backend validation_fraction max_length num_workers "
            "cache_mb rows_per_split train_rows mini.train_per_task"
        ).split()
    )


def test_real_rows_make_batches(processor, real_root):
    config = DataConfig(name="mmt47", root=str(real_root), train_rows=40)
    data = MMTDataModule(config, batch_size=8, eval_batch_size=8, seed=0, processor=processor, family=FAMILY)
    batches = list(data.train_dataloader())
    assert sum(len(batch["rows"]) for batch in batches) == 40
    images = data.test_rows("image_test_text_recognition")
    assert data.collator.prompt_batch(images)["pixel_values"].shape[0] == 4
