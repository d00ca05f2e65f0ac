"""What the machine refuses is a sentence; log lines stand above a live bar; retries of the hub print nothing."""

from __future__ import annotations

import errno
import logging
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from lime.limits import explained

BAR = """
import logging, sys, time
from lime.training.progress import ProgressDisplay
logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
with ProgressDisplay("training", 20) as bar:
    for i in range(20):
        bar.advance(1, "loss 1.0")
        time.sleep(0.03)
        if i % 5 == 0:
            logging.info("line %d", i)
logging.info("after")
"""


def in_terminal(code: str) -> str:
    """What a program writes into a terminal of 80 columns."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "COLUMNS": "80", "TERM": "xterm"}
    running = subprocess.Popen(
        [sys.executable, "-c", code], stdin=theirs, stdout=theirs, stderr=theirs, env=environment
    )
    os.close(theirs)
    written = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        written += part
    os.close(ours)
    assert running.wait(timeout=60) == 0, written
    return written.decode()


def test_log_lines_stand_above_the_bar() -> None:
    written = in_terminal(BAR)
    assert "training" in written
    for i in (0, 5, 10, 15):
        before, _, after = written.partition(f"line {i}\r\n")
        # The bar's line is erased first, and the line is not glued to what stood there.
        assert before.endswith("\x1b[2K"), before[-80:]
        assert after
    assert written.rstrip().endswith("after")


@pytest.mark.parametrize(
    ("error", "parts"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/a/b"), ["/a/b", "the disk is full", "hydra.run.dir"]),
        (OSError(errno.EROFS, "Read-only file system", "/a/b"), ["/a/b", "can only be read"]),
        (PermissionError(errno.EACCES, "Permission denied", "/a/b"), ["/a/b", "permissions"]),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", "/a/b"), ["/a/b", "a file, not a folder"]),
        (OSError(errno.EMFILE, "Too many open files", "/a/b"), ["ulimit -n", "data.num_workers"]),
        (RuntimeError("unable to open shared memory: Too many open files (24)"), ["ulimit -n"]),
        (MemoryError(), ["memory", "trainer.batch_size"]),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory"), ["memory"]),
        (ImportError("libtorch.so: failed to map segment from shared object"), ["memory", "trainer.batch_size"]),
        (ValueError("seed: wrong"), ["seed: wrong"]),
    ],
)
def test_what_the_machine_refuses_is_told_in_a_sentence(error: Exception, parts: list[str]) -> None:
    said = explained(error)
    assert said is not None
    assert "\n" not in said
    for part in parts:
        assert part in said


def test_faults_of_the_program_keep_their_traceback() -> None:
    assert explained(KeyError("x")) is None
    assert explained(RuntimeError("shapes do not fit")) is None


def test_too_few_open_files_are_told_at_once() -> None:
    code = (
        "import resource as r; r.setrlimit(r.RLIMIT_NOFILE, (40, 40)); from lime.limits import check_files as c; c(2)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "data.num_workers: 2 need about 128 open files, this process may have 40" in done.stderr
    code = code.replace("(40, 40)", "(40, 4096)") + "; print(r.getrlimit(r.RLIMIT_NOFILE)[0])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "128\n"


def test_tables_are_left_out_and_information_goes_to_files_alone_in_a_sweep(tmp_path: Path) -> None:
    from lime.experiments.quiet import tables_are_shown, warnings_alone

    root = logging.getLogger()
    file = logging.FileHandler(tmp_path / "log")
    before = root.level
    root.addHandler(file)
    root.setLevel(logging.INFO)
    try:
        assert tables_are_shown()
        with warnings_alone():
            assert not tables_are_shown()
            logging.getLogger("lime").info("to the file")
        assert tables_are_shown()
    finally:
        root.removeHandler(file)
        root.setLevel(before)
        file.close()
    assert "to the file" in (tmp_path / "log").read_text()


def test_retries_of_the_hub_print_nothing() -> None:
    code = (
        "import logging; from lime.config.cli import speak_plainly; speak_plainly(); "
        "import huggingface_hub.utils._http; "
        "logging.basicConfig(level=logging.INFO); "
        "logging.getLogger('huggingface_hub.utils._http').warning('Retrying in 1s [Retry 1/5].')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout + done.stderr == ""
