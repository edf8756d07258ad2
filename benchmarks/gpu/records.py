"""What a run learnt, on disk before anything can end it.

``results.jsonl`` gets a line for each result as it comes; ``summary.json`` and ``logs.tgz`` are
written anew after each stage, and ``diagnosis.txt`` with them.
"""

from __future__ import annotations

import json
import tarfile
import tempfile
import threading
from pathlib import Path
from time import perf_counter
from typing import Any

SUMMARY, LINES, LOGS, DIAGNOSIS = "summary.json", "results.jsonl", "logs.tgz", "diagnosis.txt"


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

    def add(self, stage: str, case: str, result: dict[str, Any]) -> None:
        with self.lock:
            self.results.setdefault(stage, {})[case] = result
            line = {"stage": stage, "case": case, "at": round(perf_counter() - self.start, 2)}
            self.lines.write(json.dumps(line | result) + "\n")
            self.lines.flush()

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
        _replace(self.folder / SUMMARY, text + "\n")
        _replace(self.folder / DIAGNOSIS, diagnosis + "\n")
        partial = self.folder / (LOGS + ".partial")
        with tarfile.open(partial, "w:gz") as tar:
            tar.add(self.logs, "logs")
        partial.replace(self.folder / LOGS)


def _replace(path: Path, text: str) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    partial.replace(path)
