"""What a run learnt, on disk before anything can end it.

``results.jsonl`` gets a line for each result as it comes; ``summary.json`` and ``logs.tgz`` are
written anew after each stage, and ``diagnosis.txt`` with them.
"""

from __future__ import annotations

import contextlib
import io
import json
import tarfile
import tempfile
import threading
from itertools import count
from pathlib import Path
from time import perf_counter
from typing import Any

SUMMARY, LINES, LOGS, DIAGNOSIS = "summary.json", "results.jsonl", "logs.tgz", "diagnosis.txt"
LOG_BYTES = 256 * 1024  # of each that are kept
FILES = SUMMARY, LINES, LOGS, DIAGNOSIS


def set_aside(folder: Path) -> str:
    """Moves an earlier run's files out of the way; a line that says where, if there were any."""
    earlier = [path for name in FILES if (path := folder / name).exists()]
    if not earlier:
        return ""
    place = next(p for i in count(1) if not (p := folder / f"earlier-{i}").exists())
    place.mkdir()
    for path in earlier:
        path.replace(place / path.name)
    return f"the files of an earlier run were moved to {place}"


class Records:
    """Results by stage and case."""

    def __init__(self, folder: Path, about: dict[str, Any]):
        self.folder, self.about = folder, about
        self.results: dict[str, dict[str, dict[str, Any]]] = {}
        self.seconds: dict[str, float] = {}
        self.scratch = tempfile.TemporaryDirectory(prefix="gpu-check-")
        self.logs, self.cache = (Path(self.scratch.name) / name for name in ("logs", "cache"))
        self.logs.mkdir()
        self.lock = threading.Lock()
        self.start = perf_counter()
        self.lines = (folder / LINES).open("w")
        self.unwritten = ""  # why something could not be written: the run goes on

    def add(self, stage: str, case: str, result: dict[str, Any]) -> None:
        with self.lock:
            self.results.setdefault(stage, {})[case] = result
            line = {"stage": stage, "case": case, "at": round(perf_counter() - self.start, 2)}
            try:
                self.lines.write(json.dumps(line | result) + "\n")
                self.lines.flush()
            except OSError as error:
                self.unwritten = str(error)

    def failed(self) -> list[tuple[str, str, str]]:
        """(stage, case, error) of what did not come out well."""
        found = []
        for stage, cases in self.results.items():
            for case, result in cases.items():
                if "error" in result:
                    found.append((stage, case, result["error"]))
                elif result.get("ok") is False:
                    worst = f"{result['worst']}: {result['times_allowed']:.3g} times the allowed"
                    found.append((stage, case, worst))
        return found

    def save(self, diagnosis: str) -> None:
        with self.lock:
            document = {"about": self.about, "seconds": self.seconds, "results": self.results}
            text = json.dumps(document, indent=1)
        for name, write in {
            SUMMARY: lambda path: path.write_text(text + "\n"),
            DIAGNOSIS: lambda path: path.write_text(diagnosis + "\n"),
            LOGS: self._pack_logs,
        }.items():
            partial = self.folder / f"{name}.partial"
            try:
                write(partial)
                partial.replace(self.folder / name)
            except OSError as error:
                self.unwritten = str(error)
                with contextlib.suppress(OSError):
                    partial.unlink(missing_ok=True)

    def _pack_logs(self, path: Path) -> None:
        """The end of each log: one that a case has flooded must not cost the run its time."""
        with tarfile.open(path, "w:gz") as tar:
            for log in sorted(self.logs.iterdir()):
                with log.open("rb") as file:
                    file.seek(max(0, log.stat().st_size - LOG_BYTES))
                    content = file.read(LOG_BYTES)
                entry = tarfile.TarInfo(f"logs/{log.name}")
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
