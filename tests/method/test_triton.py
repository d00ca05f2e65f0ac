"""The fused layer's Triton kernels against torch, interpreted on the CPU and on a GPU, and compiled for GPUs that need
not be there.

Triton decides once in a process whether it interprets, so each runs in a process of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lime.method import fused, triton
from lime.method.fused import function, operations
from tests.method.test_fused import layer

needs_triton = pytest.mark.skipif(not triton.installed(), reason="the package triton is not installed")


def run(arguments: list[str], **environment: str) -> str:
    """Output of a Python process in the repository's folder; it must succeed."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=Path(__file__).parents[2],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


KERNELS = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/method/triton_kernels.py"]


@needs_triton
def test_interpreted_they_compute_what_torch_does() -> None:
    assert "passed" in run(KERNELS, TRITON_INTERPRET="1")


@needs_triton
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_on_a_gpu_they_compute_what_torch_does() -> None:
    assert "passed" in run(KERNELS, TRITON_INTERPRET="0")


@needs_triton
@pytest.mark.slow
def test_they_compile_for_ampere_and_hopper(tmp_path: Path) -> None:
    made = run(["-m", "tests.method.triton_compiled"], TRITON_CACHE_DIR=str(tmp_path), TRITON_INTERPRET="0")
    assert made.count("bytes") == 12


def test_asked_for_where_they_cannot_run_they_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    x, made = torch.randn(2, 3, 16), layer(torch.float32)
    monkeypatch.setattr(triton, "_interpreted", lambda: False)
    with fused.use("triton"), pytest.raises(RuntimeError, match=r"needs a GPU|needs the package triton"):
        made(x)
    monkeypatch.setattr(triton, "installed", lambda: False)
    with fused.use("triton"), pytest.raises(RuntimeError, match="needs the package triton"):
        made(x)


@pytest.mark.parametrize("path", ["auto", "fused"])
def test_they_are_never_taken_without_being_asked_for(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*given: object) -> None:
        raise AssertionError("kernels")

    for name in ("add_update", "backward", "_takes"):
        monkeypatch.setattr(triton, name, refuse)
    x, made = torch.randn(2, 3, 16), layer(torch.float32)
    with fused.use(path):
        made(x).sum().backward()
    with fused.use("triton"), pytest.raises(AssertionError, match="kernels"):
        made(x)


@pytest.mark.parametrize(("given", "expected"), [("fused", "fused"), ("triton", "triton"), ("", "auto")])
def test_the_environment_names_the_path_of_a_process(given: str, expected: str) -> None:
    assert run(["-c", "from lime.method import fused; print(fused.path())"], LIME_PATH=given).strip() == expected


def test_the_environment_cannot_name_an_unknown_path() -> None:
    with pytest.raises(AssertionError, match="LIME_PATH: expected one of auto, triton"):
        run(["-c", "from lime.method import fused"], LIME_PATH="fast")


def test_a_triton_that_cannot_be_imported_is_none(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(name: str) -> None:
        raise ImportError("libcuda.so.1: not found")

    monkeypatch.setattr(triton.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(triton.importlib, "import_module", broken)
    assert not triton.installed.__wrapped__()
    assert "Triton cannot be imported (ImportError: libcuda.so.1: not found)" in caplog.text


def test_on_a_gpu_auto_takes_them_and_elsewhere_torch_acts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton, "installed", lambda: True)
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    for path, on_gpu, on_cpu in (
        ("auto", triton, operations), ("triton", triton, triton),
        ("fused", operations, operations), ("torch", operations, operations),
    ):  # fmt: skip
        with fused.use(path):
            assert (function._way(gpu), function._way(cpu)) == (on_gpu, on_cpu)
    monkeypatch.setattr(triton, "installed", lambda: False)
    assert function._way(gpu) is operations
