"""Scripts in processes of their own, forked from one that has imported the libraries.

Such a process differs from `python script.py` by the seconds that the imports take. What happens while the libraries
are imported, and what an environment changes about that, is for `subprocess`.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
EVERY = 0.03
"""Seconds between two questions whether a process has ended."""
SERVER = """
import importlib, json, os, runpy, signal, sys
sys.path.insert(0, sys.argv[1])
importlib.import_module(sys.argv[2])

for line in sys.stdin:
    asked = json.loads(line)
    if "of" in asked:
        process, status = os.waitpid(asked["of"], os.WNOHANG)
        print(json.dumps(os.waitstatus_to_exitcode(status) if process else None), flush=True)
    elif not os.fork():
        break
else:
    sys.exit()
os.setsid()
os.chdir(asked["cwd"])
os.environ.clear()
os.environ.update(asked["env"])
sys.argv = asked["command"]
sys.path[0] = os.path.dirname(sys.argv[0])
sys.path[1:1] = [place for place in asked["env"].get("PYTHONPATH", "").split(os.pathsep) if place]
signal.signal(signal.SIGINT, signal.default_int_handler)
print(os.getpid(), flush=True)
for stream, place in enumerate((os.devnull, asked["out"], asked["err"])):
    os.dup2(os.open(place, os.O_RDWR | os.O_APPEND), stream)
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@functools.cache
def server(preloaded: str) -> subprocess.Popen[str]:
    """The process that forks, one for all tests of this one."""
    started = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(ROOT), f"tests.preloaded.{preloaded}"], text=True, start_new_session=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    atexit.register(started.communicate)
    return started


def ask(process: subprocess.Popen[str], **question: Any) -> Any:
    """One line to the forking process, and its answer."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps(question) + "\n")
    process.stdin.flush()
    return json.loads(process.stdout.readline())


class Process:
    """A running script, with the methods of `subprocess.Popen`; it leads a session of its own."""

    def __init__(
        self,
        command: list[str],
        cwd: Path,
        env: dict[str, str] | None = None,
        together: bool = False,
        preloaded: str = "project",
    ):
        """Start it.

        Args:
            command: The interpreter, a script, and its arguments.
            cwd: Where it runs.
            env: Its environment; None: that of the tests.
            together: Write both streams to one place.
            preloaded: The module of `tests.preloaded` that it has imported.
        """
        assert command[0] == sys.executable
        self._out, self._err = (Path(tempfile.mkstemp(prefix="lime-said-")[1]) for _ in range(2))
        self._streams = (self._out, self._out) if together else (self._out, self._err)
        self.args = command
        self.returncode: int | None = None
        self._asked = 0.0
        out, err = map(str, self._streams)
        self._server = server(preloaded)
        self.pid: int = ask(
            self._server, command=command[1:], cwd=str(cwd), env=dict(os.environ) if env is None else env, out=out,
            err=err,
        )  # fmt: skip

    def poll(self) -> int | None:
        if self.returncode is None and time.monotonic() > self._asked + EVERY:
            self.returncode = ask(self._server, of=self.pid)
            self._asked = time.monotonic()
        return self.returncode

    def wait(self, timeout: float = 1800) -> int:
        deadline = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(self.args, timeout)
            time.sleep(EVERY)
        return code

    def communicate(self, timeout: float = 1800) -> tuple[str, str]:
        self.wait(timeout)
        said = (self._out.read_text(encoding="utf-8"), self._err.read_text(encoding="utf-8"))
        self._out.unlink()
        self._err.unlink()
        return said

    def send_signal(self, number: signal.Signals) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def run(
    command: list[str], cwd: Path, env: dict[str, str] | None = None, preloaded: str = "project"
) -> subprocess.CompletedProcess[str]:
    """A script run to its end."""
    process = Process(command, cwd, env, preloaded=preloaded)
    out, err = process.communicate()
    assert process.returncode is not None
    return subprocess.CompletedProcess(command, process.returncode, out, err)
