"""Fetching: licences first, room first, a plain way out where the hub cannot be reached. Counting rows and tokens."""

from __future__ import annotations

import shutil

import pytest
from huggingface_hub import DryRunFileInfo

import lime.data.tools.download as module
from lime.data.collate import Collator
from lime.data.rows import MMTDataset
from lime.data.tasks import TASKS
from lime.data.tools.download import check_space, download
from lime.data.tools.sources import CONSTITUENTS, licences
from lime.data.tools.stats import statistics


def test_every_task_has_a_source_with_terms():
    named = [task for source in CONSTITUENTS for task in source.tasks]
    assert sorted(named) == sorted(TASKS)
    assert all(source.terms in licences() for source in CONSTITUENTS)


def test_nothing_is_fetched_before_the_licences_are_accepted(tmp_path):
    with pytest.raises(ValueError, match="--accept-licences") as caught:
        download(tmp_path / "root", accept_licences=False)
    assert "SVHN" in str(caught.value)
    assert not (tmp_path / "root").exists()


def test_without_the_hub_it_says_what_to_fetch_and_where_to_put_it(tmp_path):
    with pytest.raises(ConnectionError) as caught:
        download(tmp_path / "root", accept_licences=True, parts=["images"])
    said = str(caught.value)
    assert "hf download Kowsher/MMT-47 --repo-type dataset --local-dir FOLDER --include 'images/*'" in said
    assert f"prepare {tmp_path / 'root'}" in said


def test_an_unknown_part_is_named(tmp_path):
    with pytest.raises(ValueError, match="expected any of rows, images, videos, got sounds"):
        download(tmp_path, accept_licences=True, parts=["sounds"])


@pytest.mark.parametrize(("size", "fits"), [(2 * 10**9, True), (5 * 10**9, False)])
def test_room_is_checked_for_files_and_what_is_unpacked(tmp_path, monkeypatch, size, fits):
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**11, 0, 10**10))
    there = DryRunFileInfo("0", size, "images/images.zip", str(tmp_path), False, True)
    if fits:
        check_space(tmp_path / "new", [there])
        return
    with pytest.raises(OSError, match=r"5\.0 GB to fetch and about 5\.8 GB to unpack.*10\.0 GB left"):
        check_space(tmp_path / "new", [there])


def test_statistics_count_what_training_counts(processor, family, root):
    dataset = MMTDataset(root)
    collator = Collator(processor, family, root, max_length=60)
    found = statistics(dataset, collator)
    rows = list(dataset.train)
    lengths = Collator(processor, family, root).lengths(rows)
    train = [one for one in found.tasks if one.part.startswith("train")]
    assert sum(one.tokens for one in train) == sum(lengths)
    assert max(one.longest for one in train) == max(lengths)
    assert sum(one.too_long for one in train) == sum(n > 60 for n in lengths)
    assert [one.rows for one in found.modalities] == [4, 4, 4]
    text = next(one for one in found.modalities if one.modality == "text")
    own = Collator(processor, family, root).lengths(list(dataset.tests["glue_test_sst2"]))
    assert (text.longest, text.visual) == (max(own), 0)
    assert sorted(own)[len(own) // 2 - 1] <= text.p50 <= sorted(own)[len(own) // 2]
    assert "all tests (video)" in found.table()
