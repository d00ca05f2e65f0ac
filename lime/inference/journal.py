"""Answers of an evaluation as they come, so that a killed evaluation goes on where it stood.

``partial/NAME-RANK.jsonl`` in the run's folder: a first line with the key of what decides the answers, then one line
per row. Rows are answered in batches that do not depend on how many were done before or by how many processes, so a
resumed evaluation gives the same answers.
"""

from __future__ import annotations

import json
import logging
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lime.distributed import processes
from lime.evaluation.predictions import CutAnswer
from lime.system.atomic import remove, write_text
from lime.system.limits import naming

log = logging.getLogger(__name__)

FOLDER = "partial"


class Journal:
    """The answers given so far. Every process writes its own file and reads those of all.

    Args:
        folder: the run's folder.
        name: what is answered, e.g. ``frozen``.
        key: hash of everything that decides the answers; files with another key are removed.
    """

    def __init__(self, folder: Path, name: str, key: str):
        self._folder, self._name, self._key = folder / FOLDER, name, key
        self._head = json.dumps({"key": key}) + "\n"
        self.answers: dict[str, Any] = {}
        if processes.is_main():
            self._folder.mkdir(parents=True, exist_ok=True)
            for path in sorted(self._folder.glob(f"{name}-*.jsonl")):
                self._read(path)
            self._compact()
        self.answers = processes.from_main(self.answers)
        if self.answers:
            log.info("%s: %d answers are there already", name, len(self.answers))
        path = self._path(processes.rank())
        self._file = path.open("a", encoding="utf-8")
        if self._file.tell() == 0:
            with naming(path):
                self._file.write(self._head)
                self._file.flush()

    def add(self, answers: Mapping[str, Any]) -> None:
        """Keep the answers of a batch, by row id."""
        with naming(self._path(processes.rank())):
            for row, answer in answers.items():
                self._file.write(_line(row, answer))
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Write no more; the files stay until :func:`remove_journals`."""
        self._file.close()

    def _path(self, number: int) -> Path:
        return self._folder / f"{self._name}-{number}.jsonl"

    def _read(self, path: Path) -> None:
        """Take the answers of a file. Lines that are not as they were written are named, and their rows asked again."""
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]  # a last line cut off is left out
        head = _json(lines[0]) if lines else {}
        if head.get("key") != self._key:
            if lines and "key" not in head:
                log.warning("%s is damaged: its answers are asked again", path)
            remove(path)
            return
        bad = []
        for number, line in enumerate(lines[1:], start=2):
            entry = _json(line)
            row, answer = entry.get("id"), entry.get("answer")
            if entry.get("cut") and isinstance(answer, str):
                answer = CutAnswer(answer)
            if isinstance(row, str) and _line(row, answer) == line + "\n":
                self.answers[row] = answer
            else:
                bad.append(number)
        if bad:
            log.warning("%s: %d damaged lines (first: %d); their rows are asked again", path, len(bad), bad[0])

    def _compact(self) -> None:
        """One file with all answers, so that no cut line stands before new ones."""
        lines = [self._head, *(_line(row, answer) for row, answer in self.answers.items())]
        write_text(self._path(0), "".join(lines))
        for path in self._folder.glob(f"{self._name}-*.jsonl"):
            if path != self._path(0):
                remove(path)


def _line(row: str, answer: Any) -> str:
    """An answer with a checksum of it."""
    cut = {"cut": True} if isinstance(answer, CutAnswer) else {}
    text = json.dumps([row, answer, *cut], ensure_ascii=False)
    entry = {"id": row, "answer": answer, **cut, "checksum": zlib.crc32(text.encode(errors="surrogatepass"))}
    return json.dumps(entry, ensure_ascii=False) + "\n"


def _json(line: str) -> dict[str, Any]:
    """The object in a line; empty where there is none."""
    try:
        content = json.loads(line)
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def remove_journals(folder: Path) -> None:
    """The evaluation is whole and written: forget its parts."""
    remove(folder / FOLDER)
