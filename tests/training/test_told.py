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

from lime.embedded.benchmark import ensure
from lime.system.atomic import replacing, replacing_folder
from lime.system.limits import explained

BAR = """
import logging, sys, time
from lime.system.progress import ProgressDisplay
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
        (OSError(errno.EFBIG, "File too large", "/a/b"), ["/a/b", "ulimit -f unlimited"]),
        (OSError(errno.EIO, "Input/output error", "/a/b"), ["/a/b", "look at the disk"]),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "/a/b"), ["/a/b", "how the path is written"]),
        (BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"), ["ulimit -u", "data.num_workers"]),
        (RuntimeError("can't start new thread"), ["ulimit -u", "data.num_workers"]),
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


def test_the_limit_of_a_file_s_size_is_told_with_its_number() -> None:
    code = (
        "import errno, resource as r; from lime.system.limits import explained; "
        "r.setrlimit(r.RLIMIT_FSIZE, (3 * 2**20, r.RLIM_INFINITY)); "
        "print(explained(OSError(errno.EFBIG, 'File too large', '/a/b')))"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "/a/b: File too large; this process may not write larger files (now 3.0 MB, `ulimit -f 3072`)" in said


def test_an_error_of_a_library_that_names_no_file_is_told_with_the_one_that_was_to_be_written(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left") as one, replacing(tmp_path / "a.safetensors"):
        raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")
    assert (one.value.errno, one.value.filename) == (errno.ENOSPC, str(tmp_path / "a.safetensors"))
    with pytest.raises(OSError, match="too large") as one, replacing_folder(tmp_path / "adapter", "adapter") as folder:
        raise OSError(errno.EFBIG, "File too large", str(folder / "x"))
    assert one.value.filename == str(tmp_path / "adapter" / "x")


@pytest.mark.parametrize("place", ["/proc/nope", "/proc/none/nope", "FILE/nope", "FILE/in/nope"])
def test_generation_into_a_place_that_cannot_be_written_names_the_key(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("")
    root = place.replace("FILE", str(tmp_path / "file"))
    with pytest.raises(OSError, match=r"data\.root: .* cannot be written to .*data\.root=FOLDER") as one:
        ensure(root, train_per_task=1, test_per_task=1, workers=1)
    assert root in str(one.value)


def test_faults_of_the_program_keep_their_traceback() -> None:
    assert explained(KeyError("x")) is None
    assert explained(RuntimeError("shapes do not fit")) is None


def test_too_few_open_files_are_told_at_once() -> None:
    code = (
        "import resource as r; r.setrlimit(r.RLIMIT_NOFILE, (40, 40)); import lime.system.limits as l; l.check_files(2)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "data.num_workers: 2 need about 128 open files, this process may have 40" in done.stderr
    code = code.replace("(40, 40)", "(40, 4096)") + "; print(r.getrlimit(r.RLIMIT_NOFILE)[0])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "128\n"


def test_tables_are_left_out_and_information_goes_to_files_alone_in_a_sweep(tmp_path: Path) -> None:
    from lime.runs.quiet import tables_are_shown, warnings_alone

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
        "import logging; from lime.jobs.command_line import speak_plainly; speak_plainly(); "
        "import huggingface_hub.utils._http; "
        "logging.basicConfig(level=logging.INFO); "
        "logging.getLogger('huggingface_hub.utils._http').warning('Retrying in 1s [Retry 1/5].')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout + done.stderr == ""
