"""The frame cache: the right entry or none, a bound that holds, and many processes at once."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import time

import numpy as np
import pytest
import torch

from lime.data.collate import Collator, model_inputs
from lime.data.config import DataConfig, FrameCacheConfig
from lime.data.media.frame_cache import FrameCache
from lime.data.rows import MMTDataset
from lime.system.atomic import temporary_beside

CLIPS = "video_test_action_sequence"


def frames(seed: int, kib: int = 100) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (kib, 1024), dtype=np.uint8)


def entries(cache):
    return sorted(path for path in cache.folder.glob("??/*"))


@pytest.fixture
def cache(tmp_path):
    return FrameCache(tmp_path / "frames", 1)


@pytest.fixture
def clip(tmp_path):
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"one")
    return path


def test_an_entry_comes_back_as_it_was(cache):
    cache.put("ab" * 32, frames(0), {"size": [4, 6], "grid": None})
    values, notes = FrameCache(cache.folder, 1).get("ab" * 32)
    assert np.array_equal(values, frames(0))
    assert notes == {"size": [4, 6], "grid": None}
    assert cache.get("cd" * 32) is None


def test_keys_follow_content_and_sampling_not_place_and_time(cache, clip, tmp_path):
    key = cache.key(clip, "8 frames")
    copy = shutil.copy(clip, tmp_path / "other.mp4")
    os.utime(copy, (1, 1))
    assert cache.key(copy, "8 frames") == key
    assert cache.key(clip, "16 frames") != key
    state = clip.stat()
    replacement = tmp_path / "new"
    replacement.write_bytes(b"two")
    os.utime(replacement, ns=(state.st_atime_ns, state.st_mtime_ns))
    replacement.replace(clip)
    assert cache.key(clip, "8 frames") != key, "other bytes of the same size and time"


def test_the_bound_holds_and_the_longest_unused_go_first(cache):
    for n in range(9):
        cache.put(f"{n:064x}", frames(n), {})
        os.utime(cache._place(f"{n:064x}"), (1000 + n, 1000 + n))
    assert cache.get(f"{0:064x}") is not None, "using an entry makes it young"
    for n in range(9, 12):
        cache.put(f"{n:064x}", frames(n), {})
    assert cache.size() <= cache.limit
    kept = {n for n in range(12) if cache.get(f"{n:064x}") is not None}
    assert {0, 9, 10, 11} <= kept
    assert not {1, 2} & kept


def test_what_is_larger_than_the_bound_is_not_kept(cache):
    cache.put("ab" * 32, frames(0, 1100), {})
    assert cache.get("ab" * 32) is None
    assert not entries(cache)


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b"", lambda b: b[:40], lambda b: b[:-1] + b"\0\0"])
def test_a_damaged_entry_counts_as_none_and_is_written_anew(cache, caplog, damage):
    key = "ab" * 32
    cache.put(key, frames(0), {})
    place = cache._place(key)
    place.write_bytes(damage(place.read_bytes()))
    assert cache.get(key) is None
    assert "damaged entry" in caplog.text
    cache.put(key, frames(0), {})
    assert cache.get(key) is not None


def test_leavings_of_a_dead_process_are_removed_and_do_not_count(cache):
    cache.put("ab" * 32, frames(0), {})
    dead = temporary_beside(cache.folder / "ab" / "x")
    dead.write_bytes(bytes(10))
    os.utime(dead, (1, 1))
    live = temporary_beside(cache.folder / "ab" / "x")
    live.write_bytes(bytes(10))
    others = [cache.folder / "ab" / name for name in ("notes.txt", ".old", f"{'z' * 64}.frames", "x.frames")]
    for other in others:
        other.write_text("precious")
        os.utime(other, (1, 1))
    (cache.folder / ".lime-frames.total").unlink()  # a lost sum is counted again
    cache.put("cd" * 32, frames(1), {})
    assert not dead.exists()
    assert live.exists()
    assert all(other.exists() for other in others)
    assert int((cache.folder / ".lime-frames.total").read_text()) == cache.size()


def test_a_folder_that_cannot_be_written_turns_it_off(cache, caplog):
    cache.folder.mkdir(parents=True)
    (cache.folder / "ab").write_text("in the way")
    cache.put("ab" * 32, frames(0), {})
    cache.put("cd" * 32, frames(0), {})
    assert caplog.text.count("cannot be written") == 1
    assert cache.get("cd" * 32) is None


def test_wrong_settings_are_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match=r"data\.frame_cache\.dir"):
        FrameCache(tmp_path / "file", 1)
    with pytest.raises(ValueError, match="size_mb"):
        FrameCache(tmp_path, 0)
    config = DataConfig(root="x", prefetch=0, frame_cache=FrameCacheConfig(size_mb=0))
    assert [message.split(":")[0] for message in config.errors()] == ["data.prefetch", "data.frame_cache.size_mb"]


def _hammer(folder, worker, results):
    """Puts and gets the same keys as its siblings in a cache that holds a third of them."""
    cache = FrameCache(folder, 1)
    rng = np.random.default_rng(worker)
    wrong, hits, largest = 0, 0, 0
    for _ in range(150):
        n = int(rng.integers(30))
        found = cache.get(f"{n * 7919:064x}")
        if found is None:
            cache.put(f"{n * 7919:064x}", frames(n), {"n": n})
        else:
            hits += 1
            wrong += not (np.array_equal(found[0], frames(n)) and found[1] == {"n": n})
        largest = max(largest, cache.size())
    results.put((wrong, hits, largest))


def test_many_processes_at_once(tmp_path):
    """No torn read, no failed process, and at no moment more on disk than the bound."""
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    workers = [context.Process(target=_hammer, args=(tmp_path / "frames", n, results)) for n in range(4)]
    for worker in workers:
        worker.start()
    found = [results.get(timeout=1200) for _ in workers]
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 4
    assert sum(wrong for wrong, _, _ in found) == 0
    assert sum(hits for _, hits, _ in found) > 0
    assert max(largest for _, _, largest in found) <= 2**20
    assert FrameCache(tmp_path / "frames", 1).size() == int((tmp_path / "frames" / ".lime-frames.total").read_text())
    assert not list((tmp_path / "frames").glob("??/.*")), "nothing unfinished is left"


def _write_until_killed(folder, seed):
    cache = FrameCache(folder, 1)
    rng = np.random.default_rng(seed)
    while True:
        cache.put(f"{int(rng.integers(2**60)):064x}", frames(0, int(rng.integers(50, 400))), {})


def test_the_bound_holds_when_writers_are_killed(tmp_path):
    """Everything in the folder counts, unfinished writes included."""
    context = multiprocessing.get_context("fork")
    rng, folder, largest = np.random.default_rng(0), tmp_path / "frames", 0
    for kill in range(25):
        writer = context.Process(target=_write_until_killed, args=(folder, kill))
        writer.start()
        time.sleep(0.03 + float(rng.random()) * 0.05)
        writer.kill()
        writer.join()
        held = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and ".lock" not in path.name)
        largest = max(largest, held)
        assert held <= 2**20 + 16, f"after {kill + 1} killed writers"
    cache = FrameCache(folder, 1)
    cache.put("ab" * 32, frames(1), {})
    assert np.array_equal(cache.get("ab" * 32)[0], frames(1)), "and it still works"
    assert {path.name for path in folder.glob(".*")} == {".lime-frames.lock", ".lime-frames.total"}
    assert largest > 2**19, "the writers did write"


def test_a_part_that_a_killed_writer_left_is_counted_and_removed(cache):
    cache.put("ab" * 32, frames(0), {})
    (cache.folder / ".lime-frames.part").write_bytes(bytes(2**20))
    cache.put("cd" * 32, frames(1), {})
    assert not (cache.folder / ".lime-frames.part").exists()
    assert cache.get("cd" * 32) is not None


def test_an_entry_evicted_while_it_is_read_is_read_to_its_end(cache):
    cache.put("ab" * 32, frames(0), {})
    with cache._place("ab" * 32).open("rb") as stream:
        first = stream.read(100)
        for n in range(12):
            cache.put(f"{n:064x}", frames(n), {})
            time.sleep(0.001)
        assert not cache._place("ab" * 32).exists()
        whole = first + stream.read()
    assert whole.endswith(frames(0).tobytes())


def test_batches_are_the_same_with_and_without(processor, family, root, tmp_path, monkeypatch):
    rows = list(MMTDataset(root).tests[CLIPS])
    cache = FrameCache(tmp_path / "frames", 64)
    plain = Collator(processor, family, root).training_batch(rows)
    for _ in range(2):  # decoded and kept, then found
        kept = Collator(processor, family, root, cache_mb=0, frame_cache=cache).training_batch(rows)
        assert all(torch.equal(kept[key], plain[key]) for key in model_inputs(plain))
    assert len(entries(cache)) == len({(root / row.media_path).read_bytes() for row in rows})
    monkeypatch.setattr("lime.data.collate.load_video", None)  # decoding again would fail
    Collator(processor, family, root, cache_mb=0, frame_cache=cache).prompt_batch(rows)
