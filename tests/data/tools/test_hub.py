"""Fetching from a hub that this test serves itself: whole, pinned, and going on after a kill."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from lime.data.tools.sample import write_sample
from lime.data.tools.sources import SOURCES

SCRIPT = Path(__file__).parents[3] / "scripts" / "data.py"
ROWS, IMAGES, VIDEOS = (SOURCES[name] for name in ("rows", "images", "videos"))
COMMITS = {ROWS.repository: "89abcdef" * 5, VIDEOS.repository: "01234567" * 5}
BIG = "images/images.zip"
HALF = 22_000_000  # the hub's client writes 10 MiB at a time


class Hub(ThreadingHTTPServer):
    """Serves `files` {repository: {name: bytes}}; `seen` are the ranges asked for of the big file."""

    daemon_threads = True

    def __init__(self, files: dict[str, dict[str, bytes]]) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.files = files
        self.seen: list[str | None] = []
        self.halts = threading.Event()
        self.halted = threading.Event()


class Answer(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        return

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        if match := re.fullmatch(r"/api/datasets/(\w[\w-]*/[\w-]+)(?:/revision/(\w+))?", path):
            self._info(match[1], match[2])
        elif match := re.fullmatch(r"/api/datasets/(\w[\w-]*/[\w-]+)/tree/(\w+)", path):
            if match[2] != COMMITS[match[1]]:
                self._send(404, b'{"error": "no such revision"}', {"X-Error-Code": "RevisionNotFound"})
                return
            files = self.server.files[match[1]].items()
            tree = [{"type": "file", "oid": "0" * 40, "size": len(data), "path": name} for name, data in files]
            self._send(200, json.dumps(tree).encode(), {"Content-Type": "application/json"})
        elif match := re.fullmatch(r"/datasets/(\w[\w-]*/[\w-]+)/resolve/\w+/(.+)", path):
            self._file(match[1], match[2])
        else:
            self._send(404, b"{}", {})

    def _info(self, name: str, revision: str | None) -> None:
        if revision not in (None, "main", COMMITS[name]):
            self._send(404, b'{"error": "no such revision"}', {"X-Error-Code": "RevisionNotFound"})
            return
        siblings = [{"rfilename": file, "size": len(data)} for file, data in self.server.files[name].items()]
        content = {"id": name, "sha": COMMITS[name], "siblings": siblings, "private": False, "tags": [], "downloads": 0}
        self._send(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _file(self, repository: str, name: str) -> None:
        data = self.server.files[repository][name]
        wanted = self.headers.get("Range")
        head = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": COMMITS[repository]}
        start = int(re.match(r"bytes=(\d+)-", wanted)[1]) if wanted else 0  # type: ignore[index]
        part = data[start:]
        if wanted:
            head["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        halts = name == BIG and self.command == "GET" and self.server.halts.is_set()
        if name == BIG and self.command == "GET":
            self.server.seen.append(wanted)
        self._send(206 if wanted else 200, part, head, halts)

    def _send(self, status: int, data: bytes, head: dict[str, str], halts: bool = False) -> None:
        self.send_response(status)
        for key, value in {**head, "Content-Length": str(len(data))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if not halts:
            self.wfile.write(data)
            return
        self.wfile.write(data[:HALF])
        self.wfile.flush()
        self.server.halted.set()
        while self.server.halts.is_set():
            time.sleep(0.02)
        self.close_connection = True


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    """A sample's files in the two repositories, its pictures padded so that a kill finds them half fetched."""
    made = write_sample(tmp_path / "made", images=12, clips=6, texts=12)
    files: dict[str, dict[str, bytes]] = {ROWS.repository: {}, VIDEOS.repository: {}}
    for path in sorted(path for path in made.rglob("*") if path.is_file()):
        name = path.relative_to(made).as_posix()
        files[VIDEOS.repository if name.startswith("video/") else IMAGES.repository][name] = path.read_bytes()
    files[IMAGES.repository][BIG] = os.urandom(2 * HALF) + files[IMAGES.repository][BIG]  # a zip is read from its end
    server = Hub(files)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.halts.clear()
    server.shutdown()


def command(hub: Hub, root: Path, *more: str) -> subprocess.Popen[str]:
    environment = {
        key: value for key, value in os.environ.items() if "OFFLINE" not in key and "proxy" not in key.lower()
    }
    environment |= {
        "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}", "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(root.parent),
        "NO_PROXY": "127.0.0.1",
    }  # fmt: skip
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), "download", str(root), "--accept-licences", *more],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def check(hub: Hub, root: Path) -> None:
    for files in hub.files.values():
        for name, data in files.items():
            assert (root / name).read_bytes() == data, name


def test_a_killed_download_goes_on_and_no_file_is_half_there(hub: Hub, tmp_path: Path) -> None:
    root = tmp_path / "root"
    hub.halts.set()
    first = command(hub, root)
    while not hub.halted.wait(timeout=0.1):
        assert first.poll() is None, first.communicate()[0]
    deadline = time.monotonic() + 600
    while not any(path.stat().st_size for path in root.rglob("*.incomplete")) and time.monotonic() < deadline:
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    first.wait()
    hub.halts.clear()
    assert not (root / BIG).exists(), "a file with its name is whole"
    again = command(hub, root)
    said = again.communicate(timeout=1200)[0]
    assert again.returncode == 0, said
    check(hub, root)
    assert [said.count(f"revision {commit}") for commit in COMMITS.values()] == [2, 1]
    asked = len(hub.seen)
    assert command(hub, root).wait(timeout=1200) == 0
    assert len(hub.seen) == asked, "what is there whole is not fetched again"


def test_a_part_at_a_commit(hub: Hub, tmp_path: Path) -> None:
    good = command(hub, tmp_path / "good", "--parts", "rows", "--revision", f"rows={COMMITS[ROWS.repository]}")
    said = good.communicate(timeout=1200)[0]
    assert good.returncode == 0, said
    names = {path.suffix for path in (tmp_path / "good").rglob("*") if path.is_file() and ".cache" not in path.parts}
    assert names == {".parquet"}
    bad = command(hub, tmp_path / "bad", "--parts", "rows", "--revision", "rows=" + "0" * 40)
    said = bad.communicate(timeout=1200)[0]
    assert bad.returncode == 2
    assert "Traceback" not in said
