"""Files and folders appear whole or not at all, and what somebody else owns stays."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from lime.system.atomic import remove_leftovers, replacing, replacing_folder, temporary_beside, write_json, write_text
from lime.system.ownership import MADE_BY, MARKER, check_output, check_replaceable, claim, kind_of, mark


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def fail_half_way(path: Path) -> None:
    path.write_text("half")
    raise RuntimeError("half")


def made(folder: Path, kind: str = "export", **files: str) -> Path:
    with replacing_folder(folder, kind) as temporary:
        for name, text in files.items():
            (temporary / name).write_text(text)
    return folder


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path):
    write_text(tmp_path / "a" / "x", "old")
    with pytest.raises(RuntimeError, match="half"), replacing(tmp_path / "a" / "x") as temporary:
        fail_half_way(temporary)
    assert (tmp_path / "a" / "x").read_text() == "old"
    assert names(tmp_path / "a") == ["x"]


def test_two_temporary_names_never_meet(tmp_path: Path):
    assert len({temporary_beside(tmp_path / "x") for _ in range(1000)}) == 1000


def _write_many(path: Path, mine: str, count: int) -> None:
    for _ in range(count):
        write_json(path, [mine] * 2000)


def test_many_writers_of_one_file_all_succeed(tmp_path: Path):
    path, context = tmp_path / "sweep.json", multiprocessing.get_context("fork")
    writers = [context.Process(target=_write_many, args=(path, str(n), 40)) for n in range(4)]
    threads = [threading.Thread(target=_write_many, args=(path, f"thread {n}", 40)) for n in range(2)]
    for one in [*writers, *threads]:
        one.start()
    seen = 0
    while any(one.is_alive() for one in [*writers, *threads]):
        if path.exists():
            assert len(set(json.loads(path.read_text()))) == 1
            seen += 1
    for one in writers:
        one.join()
    assert seen
    assert [one.exitcode for one in writers] == [0] * 4
    assert names(tmp_path) == ["sweep.json"]


def test_links_devices_and_permissions_stay(tmp_path: Path):
    (tmp_path / "there").write_text("old")
    (tmp_path / "there").chmod(0o640)
    (tmp_path / "link").symlink_to("there")
    write_text(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "there").read_text() == "new"
    assert (tmp_path / "there").stat().st_mode & 0o777 == 0o640
    null = Path(os.devnull).stat()
    write_text(Path(os.devnull), "x")
    assert Path(os.devnull).stat().st_rdev == null.st_rdev
    assert not Path(os.devnull).is_file()
    os.mkfifo(tmp_path / "pipe")
    reader = subprocess.Popen(["cat", str(tmp_path / "pipe")], stdout=subprocess.PIPE)
    write_text(tmp_path / "pipe", "through")
    assert reader.communicate()[0] == b"through"
    assert (tmp_path / "pipe").is_fifo()


def test_standard_output_is_written_to(tmp_path: Path):
    code = (
        "from pathlib import Path; from lime.system.atomic import write_text; write_text(Path('/dev/stdout'), 'said')"
    )
    with (tmp_path / "out").open("w") as out:
        subprocess.run([sys.executable, "-c", code], stdout=out, check=True, cwd=Path(__file__).parents[2])
    assert (tmp_path / "out").read_text() == "said"
    assert names(tmp_path) == ["out"]


def test_an_error_names_the_file_that_was_to_be_written(tmp_path: Path):
    with pytest.raises(OSError, match=r"results\.json") as told, replacing(tmp_path / "results.json"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert told.value.errno == errno.ENOSPC
    if Path("/dev/full").exists():
        with pytest.raises(OSError, match=r"No space left on device: '/dev/full'"):
            write_text(Path("/dev/full"), "x")
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError, match="folder"):
        write_text(tmp_path / "folder", "x")
    write_text(tmp_path / ("x" * 255), "the longest name that there is")


def test_a_folder_is_replaced_whole_and_only_by_its_own_kind(tmp_path: Path):
    out = made(tmp_path / "out", a="1", b="2")
    made(out, a="3")
    assert names(out) == [MARKER, "a"]
    assert (out / "a").read_text() == "3"
    assert names(tmp_path) == ["out"]
    said = json.loads((out / MARKER).read_text())
    assert said["made_by"] == "lime-moe"
    assert said["kind"] == "export"
    assert said["version"]
    with pytest.raises(FileExistsError, match="out"):
        made(out, kind="checkpoint", a="4")


def _foreign(folder: Path) -> str:
    folder.mkdir()
    (folder / "thesis.txt").write_text("precious")
    return "thesis.txt"


def _added(folder: Path) -> str:
    made(folder, a="1")
    (folder / "deep").mkdir()
    (folder / "deep" / "notes.md").write_text("precious")
    return "deep/notes.md"


def _changed(folder: Path) -> str:
    made(folder, a="1")
    (folder / "a").write_text("precious")
    return "a"


def _link(folder: Path) -> str:
    made(folder, a="1")
    (folder / "link").symlink_to(folder.parent)
    return "link"


def _forged(folder: Path) -> str:
    folder.mkdir()
    (folder / MARKER).write_text("{}")
    (folder / "thesis.txt").write_text("precious")
    return "thesis.txt"


def _hidden(folder: Path) -> str:
    folder.mkdir()
    (folder / ".bashrc.old").write_text("precious")
    return ".bashrc.old"


def _empty_folder(folder: Path) -> str:
    made(folder, a="1")
    (folder / "kept").mkdir()
    return "kept"


@pytest.mark.parametrize("make", [_foreign, _added, _changed, _link, _forged, _hidden, _empty_folder])
def test_a_folder_of_somebody_else_is_refused_by_name(tmp_path: Path, make):
    name = make(tmp_path / "out")
    before = {path: path.is_file() and path.read_bytes() for path in sorted(tmp_path.rglob("*"))}
    with pytest.raises(FileExistsError, match=name) as told:
        made(tmp_path / "out", a="2")
    assert "--overwrite" in str(told.value)
    assert str(tmp_path / "out") in str(told.value)
    assert before == {path: path.is_file() and path.read_bytes() for path in sorted(tmp_path.rglob("*"))}
    with replacing_folder(tmp_path / "out", "export", overwrite=True) as temporary:
        (temporary / "a").write_text("2")
    assert names(tmp_path / "out") == [MARKER, "a"]


def test_home_the_working_folder_and_files_are_never_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "work" / "deep").mkdir(parents=True)
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path / "work" / "deep")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "file").write_text("x")
    for place in (tmp_path / "work", Path(), Path(".."), tmp_path / "home", tmp_path / "file", Path("/")):
        with pytest.raises(FileExistsError):
            check_replaceable(place, "export", overwrite=True)


def test_a_folder_behind_a_link_is_replaced_where_it_lies(tmp_path: Path):
    made(tmp_path / "disk" / "out", a="1")
    (tmp_path / "out").symlink_to(tmp_path / "disk" / "out")
    made(tmp_path / "out", a="2")
    assert (tmp_path / "out").is_symlink()
    assert (tmp_path / "disk" / "out" / "a").read_text() == "2"


def test_a_folder_can_be_read_by_whom_the_umask_lets(tmp_path: Path):
    with replacing_folder(tmp_path / "out", "adapter") as temporary:
        (temporary / "adapter_model.safetensors").touch(0o600)
    (tmp_path / "usual").touch()
    assert (tmp_path / "out" / "adapter_model.safetensors").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_a_failed_folder_leaves_the_old_one(tmp_path: Path):
    made(tmp_path / "out", a="1")
    with pytest.raises(RuntimeError, match="half"), replacing_folder(tmp_path / "out", "export") as temporary:
        fail_half_way(temporary / "a")
    assert (tmp_path / "out" / "a").read_text() == "1"
    assert names(tmp_path) == ["out"]


KILLED = """
import os, signal, sys
from pathlib import Path
from lime.system import atomic
at = sys.argv[2]
if at == "moved":
    rename = Path.rename
    def stop(self, target):
        rename(self, target)
        os.kill(os.getpid(), signal.SIGKILL)
    Path.rename = stop
with atomic.replacing_folder(Path(sys.argv[1]) / "out", "export") as temporary, \\
        atomic.replacing(Path(sys.argv[1]) / "file") as file:
    (temporary / "a").write_text("new")
    file.write_text("new")
    if at == "writing":
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("at", ["writing", "moved"])
def test_what_a_killed_writer_left_is_cleared_and_what_it_moved_comes_back(tmp_path: Path, at: str):
    made(tmp_path / "out", a="old")
    write_text(tmp_path / "file", "old")
    precious = [".bashrc.old", ".notes.part", ".lime-part.x", ".lime-old.1.2.out", "x.lime-part.1"]
    for name in precious:
        (tmp_path / name).write_text("precious")
    (tmp_path / "deep").mkdir()
    made(tmp_path / "deep" / "out", a="other")
    (tmp_path / "deep" / temporary_beside(tmp_path / "x").name).write_text("precious")
    ended = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), at], cwd=Path(__file__).parents[2])
    assert ended.returncode == -signal.SIGKILL
    assert (tmp_path / "out").exists() == (at == "writing")
    remove_leftovers(tmp_path)
    assert names(tmp_path) == sorted([*precious, "deep", "file", "out"])
    assert len(names(tmp_path / "deep")) == 2  # nothing below is looked at
    assert (tmp_path / "out" / "a").read_text() == "old"


def test_a_writer_that_is_alive_keeps_its_file(tmp_path: Path):
    alive = tmp_path / temporary_beside(tmp_path / "x").name.replace(str(os.getpid()), str(os.getppid()))
    alive.write_text("being written")
    remove_leftovers(tmp_path)
    assert alive.exists()


def test_a_folder_is_claimed_unless_it_holds_files_of_somebody_else(tmp_path: Path):
    (tmp_path / "notes.txt").write_text("does not matter")
    claim(tmp_path, "run", ["config.yaml"])
    assert kind_of(tmp_path) == "run"
    (tmp_path / "config.yaml").write_text("of the run")
    claim(tmp_path, "run", ["config.yaml"])
    with pytest.raises(FileExistsError, match="run"):
        claim(tmp_path, "evaluation", ["config.yaml"])
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.yaml").symlink_to("nowhere")
    with pytest.raises(FileExistsError, match=r"config\.yaml"):
        claim(other, "run", ["config.yaml"])
    assert kind_of(other) is None


def test_a_file_is_replaced_if_this_program_wrote_it(tmp_path: Path):
    for name, text in {"a.html": f"<!-- {MADE_BY} -->", "b.json": '{\n  "schema": "lime-verify/1"', "c": ""}.items():
        (tmp_path / name).write_text(text)
        check_output(tmp_path / name)
    check_output(tmp_path / "absent")
    for name, text in {"d.html": "thesis", "e.json": '{"a": 1}', "f.csv": "a,b\n"}.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(FileExistsError, match=name):
            check_output(tmp_path / name)
        check_output(tmp_path / name, overwrite=True)
    (tmp_path / "f.md").write_text(MADE_BY)
    check_output(tmp_path / "f.csv")


def test_a_mark_is_not_left_half_written(tmp_path: Path):
    mark(tmp_path, "run")
    assert names(tmp_path) == [MARKER]
