"""pytest's tests of the kernels, one at a time as they are asked for.

pytest collects as ever; this takes the place of its loop, so that a test that hangs, crashes or
breaks the GPU costs one process and not the tests after it.
"""

from __future__ import annotations

import os
from typing import Any

import pytest

from benchmarks.gpu import offline
from benchmarks.gpu.device import rehearsed

TESTS = "python_tests/triton", "python_tests/compiled/test_cuda.py"


class Served:
    """The plugin: announces what was collected, and runs what it is asked for."""

    def __init__(self, channel, answer):
        self.channel, self.answer = channel, answer
        self.reports: list[pytest.TestReport] = []

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        items = {item.nodeid: item for item in session.items}
        if session.testsfailed or not items:  # a file that does not import is no test that passed
            self.channel.send({"error": f"{session.testsfailed} files could not be collected"})
            return True

        def work(case: str) -> dict[str, Any]:
            self.reports.clear()
            item = items[case]
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=None)
            return outcome(self.reports)

        self.channel.send({"ready": True, "cases": list(items)})
        for case in self.channel.cases():
            self.channel.send(self.answer(work, case))
        return True

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.reports.append(report)


def outcome(reports: list[pytest.TestReport]) -> dict[str, Any]:
    """What set-up, test and tear-down came to."""
    for report in reports:
        if report.failed:
            crash = getattr(report.longrepr, "reprcrash", None)
            text = crash.message if crash else str(report.longrepr)
            lines = [line for line in text.splitlines() if line.strip()] or [report.when or ""]
            return {"outcome": "failed", "error": lines[0][:300]}
    if any(report.skipped for report in reports):
        longrepr: Any = next(report.longrepr for report in reports if report.skipped)
        return {"outcome": "skipped", "why": str(longrepr[-1] if longrepr else "")[:200]}
    return {"outcome": "passed"}


def serve(channel, answer) -> None:
    options = ["-q", "--strict-markers", "-p", "no:cacheprovider", "-p", "no:xdist"]
    if rehearsed():
        os.environ |= {"CL_KERNELS_TEST_DEVICE": "cpu", "CL_KERNELS_TEST_REHEARSED": "1"}
        options.append("--assert=plain")
        offline.quiet_comparisons()
    status = pytest.main([*options, *TESTS], plugins=[Served(channel, answer)])
    if status not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        channel.send({"error": f"pytest ended with {status!r}"})
