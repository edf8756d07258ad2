"""A process that answers cases one after the other.

It imports what its kind needs, says that it is ready, and touches the GPU with the first case only:
the next process can start while one measures. A line of standard input is a case, a line written
to the file descriptor its result, both JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import traceback
from collections.abc import Iterator
from importlib import import_module
from typing import Any

from benchmarks.gpu import offline
from benchmarks.gpu.device import Broken, broken_gpu

FAULTS = "CL_KERNELS_REHEARSE_FAULTS"  # JSON: {case: "hang" | "crash" | "fail" | "break"}


class Channel:
    """What the process in charge asks and is told."""

    def __init__(self, fd: int):
        self.out = os.fdopen(fd, "w", buffering=1)
        self.asked = os.fdopen(os.dup(sys.stdin.fileno()))  # pytest puts another in its place

    def send(self, message: dict[str, Any]) -> None:
        self.out.write(json.dumps(message) + "\n")

    def cases(self) -> Iterator[str]:
        for line in self.asked:
            yield json.loads(line)


def error_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()] or [""]
    return f"{type(error).__name__}: {lines[0].strip()}"[:300]


def rehearsed_fault(case: str) -> None:
    """Misbehaves as the rehearsal wants this case to."""
    match json.loads(os.environ.get(FAULTS, "{}")).get(case):
        case "hang":
            time.sleep(3600)
        case "crash":
            os.abort()
        case "break":
            raise Broken("a rehearsed loss of the GPU")
        case "fail":
            raise RuntimeError("a rehearsed failure")


def answer(work, case: str, kernels: dict[str, int]) -> dict[str, Any]:
    """The result of one case; an error is one."""
    before = dict(kernels)
    start = time.perf_counter()
    try:
        rehearsed_fault(case)
        result: dict[str, Any] = work(case)
    except Exception as error:  # whatever it was, the cases after it are asked
        traceback.print_exc()  # into the log
        result = {"error": error_line(error)}
        if isinstance(error, Broken):
            result["broken"] = True
    result["case"] = case
    result["wall"] = round(time.perf_counter() - start, 3)
    result |= {name: kernels[name] - before[name] for name in kernels}
    if "error" in result and broken_gpu():
        result["broken"] = True  # only another process can go on
    return result


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.worker", description=__doc__)
    parser.add_argument("kind", help="a module with a function `work(case)`")
    parser.add_argument("--fd", type=int, required=True, help="where results are written")
    parser.add_argument("--rehearse", choices=(offline.KEYS_ONLY, offline.COMPILE))
    parser.add_argument("--arch", type=int, default=90, help="of the GPU that is rehearsed for")
    options = parser.parse_args()
    channel = Channel(options.fd)
    kernels = offline.count_kernels()
    if options.rehearse:
        offline.install(options.arch, options.rehearse)
    kind = import_module(options.kind)
    if hasattr(kind, "serve"):
        kind.serve(channel, lambda work, case: answer(work, case, kernels))
        return
    channel.send({"ready": True})
    for case in channel.cases():
        channel.send(answer(kind.work, case, kernels))


if __name__ == "__main__":
    main()
