"""Every file is written by lime.system.atomic: the sources are walked for other calls that write or remove."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted([*(ROOT / "lime").rglob("*.py"), *(ROOT / "scripts").glob("*.py"), *ROOT.glob("*.py")])

WRITERS = {
    "write_text", "write_bytes", "savefig", "to_csv", "to_json", "to_parquet", "write_table", "save_pretrained",
    "save_file", "save_to_disk", "copy", "copyfile", "copytree", "copyfileobj", "touch", "open_memmap",
}  # fmt: skip
OF_MODULE = {
    "json": {"dump"}, "yaml": {"dump", "safe_dump"}, "pickle": {"dump"}, "torch": {"save"}, "OmegaConf": {"save"},
    "np": {"save", "savez", "savez_compressed", "savetxt"}, "image": {"save"}, "Image": {"save"},
}  # fmt: skip
REMOVERS = {"unlink", "rmdir", "rmtree", "rename", "renames", "truncate", "removedirs"}
BLOCKS = {"replacing", "replacing_folder"}

ALLOWED = {
    ("lime/system/atomic.py", "*"): "the helper itself",
    ("lime/system/ownership.py", "mark"): "the marker, written whole under a name of its own",
    ("lime/system/signature.py", "_make"): "the key, whole under its name at once, and never replaced",
    (
        "lime/data/media/frame_cache.py",
        "*",
    ): "an entry is written beside its place and renamed under the cache's lock, unsynced",
    ("lime/embedded/benchmark/builder.py", "*"): "a root is built beside its place and renamed whole under its lock",
    ("lime/data/media/encoding.py", "*"): "media of a root or an archive that is being built",
    ("lime/data/tools/archives.py", "*"): "members go to a staging folder, of which whole archives are moved",
    ("lime/training/metrics.py", "*"): "logs that grow line by line; a cut last line is left out by their readers",
    ("lime/inference/journal.py", "__init__"): "a log that grows line by line",
    ("lime/system/printing.py", "flush"): "a stream that nobody reads leads nowhere",
    ("lime/system/memory.py", "*"): "a switch of the kernel, no file",
    (
        "lime/embedded/pretraining/architecture.py",
        "save_processor",
    ): "into a checkpoint's folder that its caller replaces",
    ("lime/embedded/smol/checkpoint.py", "*"): "into a checkpoint's folder that its caller replaces",
    ("lime/processors/text.py", "save_pretrained"): "into the folder that its caller names, as transformers' own do",
    ("lime/report/render.py", "_figure"): "into memory",
    ("lime/report/charts.py", "_chart"): "into memory",
    ("lime/embedded/pretraining/pool.py", "_array"): "arrays that count as there once items.json is",
    ("lime/analysis/benchmark/start.py", "first_step"): "the log of a process, in a temporary folder",
}


def writes(call: ast.Call, place: int) -> bool:
    """Whether a call of open() has a mode that writes, or one that is not written out, as argument ``place``."""
    modes = [*call.args[place : place + 1], *(keyword.value for keyword in call.keywords if keyword.arg == "mode")]
    return any(not isinstance(mode, ast.Constant) or bool(set(str(mode.value)) & set("wxa+")) for mode in modes)


def is_bare(call: ast.Call) -> str | None:
    """What a call does to a file; None where it does nothing of the kind."""
    function = call.func
    if isinstance(function, ast.Name):
        known = function.id == "save_file" or function.id in REMOVERS or (function.id == "open" and writes(call, 1))
        return function.id if known else None
    if not isinstance(function, ast.Attribute):
        return None
    name, owner = function.attr, function.value.id if isinstance(function.value, ast.Name) else ""
    if name == "ZipFile":
        known = writes(call, 1)
    elif name == "open":
        known = writes(call, 1 if owner in ("gzip", "io", "os", "av", "Image", "tarfile") else 0)
    elif name in OF_MODULE.get(owner, ()):
        known = not name.endswith("dump") or len(call.args) > 1  # without a stream it gives text
    elif name == "replace":  # of a path: one argument; of texts and data classes: more
        known = owner == "os" or (len(call.args) == 1 and not call.keywords and owner != "dataclasses")
    elif name in ("copy", "remove"):
        known = owner == {"copy": "shutil", "remove": "os"}[name]
    else:
        known = name in WRITERS or name in REMOVERS
    return name if known else None


def bare_writes(source: str) -> list[tuple[str, int, str]]:
    """(function, line, call) of every write outside a block of the helper."""
    found: list[tuple[str, int, str]] = []

    def visit(node: ast.AST, function: str, inside: bool) -> None:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            function, inside = node.name, False
        if isinstance(node, ast.With):
            names = {
                n.id if isinstance(n, ast.Name) else getattr(n, "attr", "")
                for item in node.items
                if isinstance(item.context_expr, ast.Call)
                for n in [item.context_expr.func]
            }
            inside = inside or bool(names & BLOCKS)
        if isinstance(node, ast.Call) and not inside:
            of_helper = isinstance(node.func, ast.Name) and node.func.id in ("write_text", "write_bytes", "write_json")
            if not of_helper and (what := is_bare(node)):
                found.append((function, node.lineno, what))
        for child in ast.iter_child_nodes(node):
            visit(child, function, inside)

    visit(ast.parse(source), "<module>", False)
    return found


def test_no_file_is_written_outside_the_helper():
    faults = []
    for path in SOURCES:
        name = path.relative_to(ROOT).as_posix()
        for function, line, what in bare_writes(path.read_text(encoding="utf-8")):
            if (name, "*") not in ALLOWED and (name, function) not in ALLOWED:
                faults.append(f"{name}:{line}: {what}")
    assert not faults, "written, moved or removed outside lime.system.atomic:\n" + "\n".join(faults)


def test_every_exception_is_still_needed():
    sources = {path.relative_to(ROOT).as_posix(): path for path in SOURCES}
    for (name, function), why in ALLOWED.items():
        found = [f for f, _, _ in bare_writes(sources[name].read_text(encoding="utf-8"))]
        assert found if function == "*" else function in found, f"{name}, {function} ({why}) writes nothing any more"


@pytest.mark.parametrize(
    "line",
    [
        'Path("a").write_text("x")', 'Path("a").write_bytes(b"")', 'open("a", "w")', 'Path("a").open("a")',
        'path.open(mode="xb")', 'open("a", mode="r+")', "json.dump(x, stream)", "yaml.safe_dump(x, stream)",
        "torch.save(x, path)", "figure.savefig(path)", "frame.to_csv(path)", "model.save_pretrained(path)",
        "save_file(tensors, path)", "safetensors.torch.save_file(tensors, path)", "shutil.rmtree(path)",
        "path.unlink()", 'path.open("a" if new else "w")',
        "os.replace(a, b)", "os.remove(a)", "a.rename(b)", "a.replace(b)", "shutil.copy(a, b)", "os.unlink(a)",
        "with x:\n    a.write_text(b)", "def f():\n    a.write_text(b)",
    ],
)  # fmt: skip
def test_the_walk_finds_each_way_of_writing(line: str):
    assert bare_writes(line)


@pytest.mark.parametrize(
    "line",
    [
        'write_text(path, "x")', 'text.replace("a", "b")', "dataclasses.replace(x, a=1)", "yaml.safe_dump(x)",
        "json.dumps(x)", 'open("a")', 'path.open("rb")', "dict.copy()", "items.remove(x)",
        "with replacing(p) as t:\n    t.write_text(x)", "with replacing(p) as t, t.open('w') as f:\n    f.write(x)",
    ],
)  # fmt: skip
def test_the_walk_leaves_other_calls_alone(line: str):
    assert not bare_writes(line)
