"""Asks cases of worker processes, so that none can hang, crash or spoil what comes after it.

A case has so many seconds; a process that exceeds them, dies, or has lost its CUDA context is
replaced, and the next case goes to another.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

from benchmarks.machine import ROOT

CUBLAS = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}  # what deterministic algorithms ask for
NO_TIME = "no time left"
HANGS = "hangs: killed after {:.0f} s"
CUT_OFF = "ran for {:.0f} s when the stage's time was over"
NO_START = "the processes that should answer do not start"
START_SECONDS = 60.0  # importing torch on a cold machine
END_SECONDS = 10.0  # for a process that was killed
STARTS = 3  # in a row that may fail, before a stage is given up

Record = Callable[[str, dict[str, Any]], None]


@dataclass(frozen=True)
class Stage:
    """Cases of one kind, and how they are asked."""

    name: str
    kind: str  # the module whose ``work`` answers
    cases: tuple[str, ...] | None  # None: the first worker says which
    seconds: float  # for all of them
    case_seconds: float = 30.0
    least: float = 2.0  # no case is begun with less left
    processes: int = 1
    fresh: bool = False  # a process for every case
    optimized: bool = False  # rehearsed under ``python -O``
    match: str = ""  # only cases with this in their names

    def rehearsed(self, processes: int, for_stage: float, for_case: float) -> Stage:
        """As it is gone through where nothing is timed, so many times as long at most."""
        return replace(
            self, processes=processes, fresh=False, seconds=self.seconds * for_stage,
            case_seconds=self.case_seconds * for_case,
        )  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """How every worker is started."""

    logs: Path
    environment: dict[str, str]
    arguments: tuple[str, ...] = ()

    @property
    def rehearsed(self) -> bool:
        return "--rehearse" in self.arguments


class Worker:
    """One process, and what it says."""

    def __init__(self, stage: Stage, setting: Setting, log: Path):
        self.log = log
        reading, writing = os.pipe()
        optimized = ["-O"] if stage.optimized and setting.rehearsed else []
        command = [sys.executable, *optimized, "-m", "benchmarks.gpu.worker", stage.kind]
        command += ["--fd", str(writing), *setting.arguments]
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=setting.environment, stdin=subprocess.PIPE,
                stdout=output, stderr=subprocess.STDOUT, pass_fds=[writing],
                start_new_session=True,
            )  # fmt: skip
        os.close(writing)
        self.reading: int | None = reading
        self.text = b""
        self.is_ready: dict[str, Any] | None = None

    def _line(self, until: float) -> str | None:
        """What it says next; None if it says nothing in time. EOFError if it is gone."""
        while b"\n" not in self.text:
            left = until - perf_counter()
            if self.reading is None:
                raise EOFError  # the run was ended
            if left <= 0 or not select.select([self.reading], [], [], left)[0]:
                return None
            part = os.read(self.reading, 65536)
            if not part:
                raise EOFError
            self.text += part
        line, _, self.text = self.text.partition(b"\n")
        return line.decode(errors="replace")

    def hear(self, until: float, silence: str = HANGS) -> dict[str, Any]:
        """Its next message, or why there is none; ``silence``: what it is if that is until then."""
        start = perf_counter()
        try:
            line = self._line(until)
        except EOFError:
            return {"error": f"{self._death()}{self.last_words()}"[:300], "broken": True}
        if line is None:
            return {"error": silence.format(perf_counter() - start), "broken": True}
        with contextlib.suppress(ValueError):
            if isinstance(message := json.loads(line), dict):
                return message
        return {"error": f"said what is no result: {line[:200]}", "broken": True}

    def ready(self, until: float) -> dict[str, Any]:
        if self.is_ready is None:
            self.is_ready = self.hear(min(until, perf_counter() + START_SECONDS))
        return self.is_ready

    def ask(self, case: str, seconds: float, until: float) -> dict[str, Any]:
        if "error" in (ready := self.ready(until)):
            return ready
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it died since: its end is heard
            self.process.stdin.write(json.dumps(case).encode() + b"\n")
            self.process.stdin.flush()
        limit = perf_counter() + seconds
        result = self.hear(min(until, limit), CUT_OFF if until < limit else HANGS)
        if (answered := result.pop("case", case)) != case:
            return {"error": f"answered {answered} instead", "broken": True}
        return result

    def _death(self) -> str:
        try:
            status = self.process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            return "stopped answering"
        return f"died of {signal.Signals(-status).name}" if status < 0 else f"exited with {status}"

    def last_words(self) -> str:
        """The last line of its log, after a colon."""
        with self.log.open("rb") as file:
            file.seek(max(0, self.log.stat().st_size - 4096))
            lines = file.read().decode(errors="replace").split("\n")
        return next((f": {line.strip()}" for line in reversed(lines) if line.strip()), "")

    def end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)  # what it started as well
        with contextlib.suppress(subprocess.TimeoutExpired):  # a driver may hold it for a while
            self.process.wait(END_SECONDS)
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):  # what was written to one that is gone
            self.process.stdin.close()
        if self.reading is not None:
            os.close(self.reading)
            self.reading = None


class Pool:
    """The workers of one stage. Made before its turn, they have imported what they need by then."""

    def __init__(self, stage: Stage, setting: Setting):
        self.stage, self.setting = stage, setting
        self.started = self.failed_starts = 0
        self.lock = threading.Lock()
        self.living: set[Worker] = set()
        self.spares = deque(self._start() for _ in range(stage.processes + stage.fresh))
        self.ended = False

    def _start(self) -> Worker:
        with self.lock:
            self.started += 1
            log = self.setting.logs / f"{self.stage.name.replace(' ', '-')}-{self.started}.log"
            worker = Worker(self.stage, self.setting, log)
            self.living.add(worker)
        return worker

    def _take(self) -> Worker:
        with self.lock:
            spare = self.spares.popleft() if self.spares else None
        return spare or self._start()

    def _let_go(self, worker: Worker) -> None:
        worker.end()
        with self.lock:
            self.living.discard(worker)

    def run(self, until: float, record: Record) -> None:
        """Asks every case, until then; ``record`` is called with each case and its result."""
        cases = self.stage.cases
        if cases is None:
            cases = self._collected(until, record)
        waiting = deque(case for case in cases if self.stage.match in case)
        slots = [
            threading.Thread(target=self._slot, args=(waiting, until, record), daemon=True)
            for _ in range(min(self.stage.processes, len(waiting)))
        ]
        for slot in slots:
            slot.start()
        for slot in slots:
            slot.join()
        self.end()

    def _collected(self, until: float, record: Record) -> tuple[str, ...]:
        """The cases that the first worker which starts has found."""
        ready: dict[str, Any] = {"error": NO_START}
        for _ in range(STARTS):
            worker = self._take()
            ready = worker.ready(until)
            if "error" not in ready:
                self.spares.appendleft(worker)
                return tuple(ready["cases"])
            self._let_go(worker)
        record("start", ready)
        return ()

    def _slot(self, waiting: deque[str], until: float, record: Record) -> None:
        worker: Worker | None = None
        while waiting and not self.ended:
            try:
                case = waiting.popleft()
            except IndexError:
                break
            if perf_counter() + self.stage.least > until:
                record(case, {"error": NO_TIME})
                continue
            if self.failed_starts >= STARTS:
                record(case, {"error": NO_START})
                continue
            worker = worker or self._take()
            result = worker.ask(case, self.stage.case_seconds, until)
            if self.ended:
                break
            record(case, result)
            self.failed_starts = self.failed_starts + 1 if "error" in worker.ready(until) else 0
            if self.stage.fresh or result.get("broken"):
                self._let_go(worker)
                worker = None
                if waiting and not self.spares:
                    self.spares.append(self._start())  # ready by the time it is needed

    def end(self) -> None:
        """Ends every process, those that work as well."""
        self.ended = True
        with self.lock:
            for worker in self.living:
                worker.end()
            self.living.clear()
            self.spares.clear()
