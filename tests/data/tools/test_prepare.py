"""Archives: what leads out of the root is refused by name, nothing half-done stays, and files land where rows look."""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import shutil
import stat
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest

import lime.data.tools.prepare as module
from lime.data.layout import find_splits
from lime.data.rows import MMTDataset
from lime.data.tools.archives import ArchiveError
from lime.data.tools.prepare import prepare
from lime.data.tools.verify import verify
from tests.data import tiny


def make_zip(path: Path, members: dict[str, bytes], link: tuple[str, str] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in members.items():
            file.writestr(name, data)
        if link:
            info = zipfile.ZipInfo(link[0])
            info.create_system, info.external_attr = 3, 0o120777 << 16
            file.writestr(info, link[1])
    return path


def make_tar(path: Path, members: dict[str, bytes], mode: str = "w", **special: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as file:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
        if special:
            info = tarfile.TarInfo(str(special["name"]))
            info.type, info.linkname = special["type"], str(special.get("target", ""))
            file.addfile(info)
    return path


@pytest.fixture
def root(tmp_path) -> Path:
    """Rows of three modalities, without any medium."""
    return tiny.write_root(tmp_path / "outer" / "root", tiny.splits(), media=False)


def everything(folder: Path) -> set[str]:
    """All files below."""
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


SYM, HARD, CHAR, PIPE = tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE
GOOD = {"a/good.png": b"good"}
EVIL = {
    "zip-parent": lambda p: (make_zip(p / "x.zip", {**GOOD, "../evil.png": b"x"}), "../evil.png"),
    "zip-deep": lambda p: (make_zip(p / "x.zip", {**GOOD, "a/../../evil.png": b"x"}), "a/../../evil.png"),
    "zip-absolute": lambda p: (make_zip(p / "x.zip", {**GOOD, "/tmp/evil.png": b"x"}), "/tmp/evil.png"),
    "zip-backslash": lambda p: (make_zip(p / "x.zip", {**GOOD, "..\\evil.png": b"x"}), "..\\\\evil.png"),
    "zip-drive": lambda p: (make_zip(p / "x.zip", {**GOOD, "C:/evil.png": b"x"}), "C:/evil.png"),
    "zip-link": lambda p: (make_zip(p / "x.zip", GOOD, ("a/l", "../../../etc")), "a/l"),
    "zip-link-absolute": lambda p: (make_zip(p / "x.zip", GOOD, ("a/l", "/etc/passwd")), "a/l"),
    "tar-parent": lambda p: (make_tar(p / "x.tar", {**GOOD, "../evil.png": b"x"}), "../evil.png"),
    "tar-absolute": lambda p: (make_tar(p / "x.tar.gz", {**GOOD, "/tmp/evil.png": b"x"}, "w:gz"), "/tmp/evil.png"),
    "tar-link": lambda p: (make_tar(p / "x.tar", GOOD, name="a/l", type=SYM, target="../../etc"), "a/l"),
    "tar-link-absolute": lambda p: (make_tar(p / "x.tgz", GOOD, "w:gz", name="a/l", type=SYM, target="/etc"), "a/l"),
    "tar-hardlink": lambda p: (make_tar(p / "x.tar", GOOD, name="a/l", type=HARD, target="../evil"), "a/l"),
    "tar-device": lambda p: (make_tar(p / "x.tar", GOOD, name="a/null", type=CHAR), "a/null"),
    "tar-pipe": lambda p: (make_tar(p / "x.tar", GOOD, name="a/pipe", type=PIPE), "a/pipe"),
    "tar-link-to-nothing": lambda p: (make_tar(p / "x.tar", GOOD, name="a/l", type=SYM, target="none"), "a/l"),
    "tar-twice": lambda p: (make_tar(p / "x.tar", GOOD, name="a/good.png/b", type=HARD, target="a/no"), "a/good.png/b"),
}


def _zip_bomb(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros.png", bytes(70 * 2**20))


def _mixed_zip_bomb(path):
    """One bomb among much that hardly shrinks."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros.png", bytes(70 * 2**20))
        archive.writestr(zipfile.ZipInfo("noise.png"), os.urandom(2**20))


def _tar_bomb(path):
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        info = tarfile.TarInfo("zeros.png")
        info.size = 70 * 2**20
        archive.addfile(info, io.BytesIO(bytes(info.size)))


def _tail_bomb(path):
    with gzip.open(path, "wb", compresslevel=1) as stream:
        stream.write(tarfile.TarInfo("empty.png").tobuf() + bytes(70 * 2**20))


def _header_bomb(path):
    """A name of 70 MB."""
    with tarfile.open(path, "w:gz", compresslevel=1, format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo("empty.png")
        info.pax_headers = {"comment": "x" * (70 * 2**20)}
        archive.addfile(info)


def _link_bomb(kind):
    """A small file and a thousand links to it, which become copies; each leads to the one before."""

    def write(path):
        with tarfile.open(path, "w:gz", compresslevel=1) as archive:
            info = tarfile.TarInfo("zeros.png")
            info.size = 2**20
            archive.addfile(info, io.BytesIO(bytes(info.size)))
            for number in range(1000):
                link = tarfile.TarInfo(f"{number}.png")
                link.type, link.linkname = kind, f"{number - 1}.png" if number else "zeros.png"
                archive.addfile(link)

    return write


def _zip_link_bomb(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros.png", bytes(2**20))
        for number in range(100):
            link = zipfile.ZipInfo(f"{number}.png")
            link.external_attr = (stat.S_IFLNK | 0o777) << 16
            archive.writestr(link, "zeros.png")


@pytest.mark.parametrize(
    ("suffix", "bomb"),
    [
        (".zip", _zip_bomb),
        (".zip", _mixed_zip_bomb),
        (".tar.gz", _tar_bomb),
        (".tgz", _tail_bomb),
        (".tgz", _header_bomb),
        (".tgz", _link_bomb(SYM)),
        (".tar.gz", _link_bomb(HARD)),
        (".zip", _zip_link_bomb),
    ],
)
def test_an_archive_of_far_more_than_its_size_is_refused(root, suffix, bomb):
    archive = root / f"bomb{suffix}"
    bomb(archive)
    before = set(root.rglob("*"))
    with pytest.raises(ArchiveError, match=rf"bomb{re.escape(suffix)}.* more than 100 to 1; refused"):
        prepare(root)
    assert {path for path in root.rglob("*") if not path.name.startswith(".")} == {
        path for path in before if not path.name.startswith(".")
    }


@pytest.mark.parametrize("kind", EVIL)
def test_what_leads_out_of_the_root_is_refused_by_name_and_nothing_is_left(root, kind):
    path, member = EVIL[kind](root / "images")
    before = everything(root.parent)
    with pytest.raises(ArchiveError) as caught:
        prepare(root)
    assert str(path) in str(caught.value)
    assert f"member '{member}'" in str(caught.value)
    assert everything(root.parent) == before
    assert not Path("/tmp/evil.png").exists()


DAMAGES = [(s, k) for s in (".zip", ".tar.gz", ".tar") for k in ("cut", "flipped", "text")] + [(".zip", "encrypted")]


@pytest.mark.parametrize(("suffix", "kind"), DAMAGES)
def test_a_damaged_archive_leaves_nothing(root, suffix, kind):
    noise = b"".join(bytes([n % 251, n % 7, n % 13]) for n in range(4000))
    members = {f"a/{n}.png": noise[n:] for n in range(5)}
    path = root / "images" / f"x{suffix}"
    make_zip(path, members) if suffix == ".zip" else make_tar(path, members, "w:gz" if suffix == ".tar.gz" else "w")
    data = bytearray(path.read_bytes())
    if kind == "cut":
        data = data[: len(data) // 2]
    elif kind == "flipped":
        # in a picture; in gzip's checksum; in the header of the second member
        data[{".zip": len(data) // 2, ".tar.gz": len(data) - 6, ".tar": 512 + 12288 + 20}[suffix]] ^= 0xFF
    elif kind == "text":
        data = bytearray(b"Not found")
    else:
        for start in (data.find(b"PK\x01\x02"), data.find(b"PK\x03\x04")):
            data[start + (8 if data[start + 2] == 1 else 6)] |= 1
    path.write_bytes(data)
    before = everything(root)
    with pytest.raises(ArchiveError, match=rf"x\{suffix}"):
        prepare(root)
    assert everything(root) == before


def media(root: Path, scratch: Path, part: str, suffix: str) -> dict[str, bytes]:
    """The media that the rows of a part name, as archive members below `top/`."""
    made = tiny.write_root(scratch, tiny.splits())
    names = sorted(made.glob(f"media/{part}_*{suffix}"))
    return {f"top/{path.name}": path.read_bytes() for path in names}


@pytest.fixture
def packed(root, tmp_path) -> Path:
    """All media in three archives of three kinds, under another folder name than the rows say."""
    make_zip(root / "images" / "images.zip", media(root, tmp_path / "s", "train", ".png"))
    make_tar(root / "images" / "more.tar", media(root, tmp_path / "s2", "test", ".png"))
    for part in ("train", "test"):
        make_tar(root / "video" / f"{part}.tar.gz", media(root, tmp_path / f"s-{part}", part, ".mp4"), "w:gz")
    return root


def test_files_land_where_the_rows_look_and_a_second_run_does_nothing(packed):
    done = prepare(packed)
    assert done.unpacked == ["images/images.zip", "images/more.tar", "video/test.tar.gz", "video/train.tar.gz"]
    assert verify(packed, workers=1).ok
    manifest = json.loads((packed / "manifest.json").read_text())["prepared"]
    assert manifest["splits"]["train"] == {"rows": 12, "text": 4, "image": 4, "video": 4}
    assert manifest["media"]["named"] == manifest["media"]["present"] == 16
    assert manifest["rows_fingerprint"] == MMTDataset(packed).rows_fingerprint
    assert not (packed / ".lime-unpacking").exists()
    stamps = {path: path.stat().st_mtime_ns for path in packed.glob("media/*")}
    assert prepare(packed).unpacked == []
    assert {path: path.stat().st_mtime_ns for path in packed.glob("media/*")} == stamps


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="no sha256sum here")
def test_checksums_are_those_of_sha256sum_and_notice_a_change(packed):
    before = prepare(packed).manifest["media"]["checksum"]
    check = ["sha256sum", "--check", "--quiet", "media.sha256"]
    assert subprocess.run(check, cwd=packed, capture_output=True).returncode == 0
    tiny.write_image(packed / "media" / "train_0.png", seed=99)
    assert subprocess.run(check, cwd=packed, capture_output=True).returncode == 1
    assert prepare(packed).manifest["media"]["checksum"] != before


def test_what_the_manifest_held_is_kept(packed):
    (packed / "manifest.json").write_text(json.dumps({"allowed_answers": {"image_test_caltech101": ["red"]}}))
    prepare(packed)
    assert MMTDataset(packed).allowed_answers("image_test_caltech101") == ["red"]


def test_a_newer_archive_is_unpacked_again(packed):
    prepare(packed)
    (packed / "media" / "train_0.png").unlink()
    assert prepare(packed).unpacked == []
    archive = packed / "images" / "images.zip"
    archive.write_bytes(archive.read_bytes())
    assert prepare(packed).unpacked == ["images/images.zip"]
    assert verify(packed, workers=1).ok


def test_links_within_an_archive_become_files(root):
    make_tar(root / "images" / "x.tar", {"top/a.png": b"picture"}, name="top/sub/l.png", type=SYM, target="../a.png")
    prepare(root)
    linked = root / "images" / "top" / "sub" / "l.png"
    assert linked.read_bytes() == b"picture"
    assert not linked.is_symlink()


def test_clips_that_no_row_names_go_into_a_folder_of_their_archive(root):
    make_zip(root / "video" / "action.v1.zip", {"a.mp4": b"clip"})
    make_zip(root / "video" / "gifs.zip", {"a.gif": b"clip", "c.gif": b"clip"})
    make_zip(root / "images" / "images.zip", {"b.png": b"picture"})
    prepare(root)
    assert (root / "video" / "action" / "a.mp4").read_bytes() == b"clip"
    assert (root / "video" / "gifs" / "a.gif").read_bytes() == b"clip"
    assert (root / "images" / "b.png").read_bytes() == b"picture"


def test_rows_may_come_in_an_archive_too(root):
    files = {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}
    shutil.rmtree(root / "MMT_47")
    make_zip(root / "rows.zip", files)
    prepare(root)
    assert set(find_splits(root)) == set(tiny.splits())


def test_a_place_reached_through_a_link_is_refused(packed):
    elsewhere = packed.parent / "elsewhere"
    elsewhere.mkdir()
    (packed / "media").symlink_to(elsewhere)
    with pytest.raises(ArchiveError, match=r"leads out of .* through a link"):
        prepare(packed)
    assert not list(elsewhere.iterdir())


def test_leavings_of_a_killed_run_are_removed_and_it_starts_again(packed, monkeypatch):
    class Killed(BaseException):
        """Stands for a kill: nothing may clean up after it."""

    def extract(archive, staging):
        staging.mkdir(parents=True)
        (staging / "half.png").write_bytes(b"x")
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(module, "extract", extract)
        patch.setattr(module, "remove", lambda path: None)
        with pytest.raises(Killed):
            prepare(packed)
    assert list((packed / ".lime-unpacking").rglob("half.png"))
    assert len(prepare(packed).unpacked) == 4
    assert not (packed / ".lime-unpacking").exists()
    assert verify(packed, workers=1).ok


def test_too_little_room_is_said_before_anything_is_written(packed, monkeypatch):
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1))
    before = everything(packed)
    with pytest.raises(OSError, match=r"images\.zip: unpacked it takes .* left; make room"):
        prepare(packed)
    assert everything(packed) == before


def test_a_file_of_somebody_else_is_not_replaced(packed):
    """A picture where an archive's would go, and checksums that this command did not write."""
    first = next(row.media_path for row in MMTDataset(packed).train if row.source_type == "image")
    (packed / first).parent.mkdir(parents=True, exist_ok=True)
    (packed / first).write_bytes(b"precious")
    with pytest.raises(ArchiveError, match=first):
        prepare(packed)
    assert (packed / first).read_bytes() == b"precious"
    (packed / first).unlink()
    (packed / "media.sha256").write_text("precious")
    with pytest.raises(FileExistsError, match=r"media\.sha256"):
        prepare(packed)
    assert (packed / "media.sha256").read_text() == "precious"
    (packed / "media.sha256").unlink()
    prepare(packed)
    assert prepare(packed).unpacked == []
