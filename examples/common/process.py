"""Parts of a run in processes of their own: nobody else has touched their memory."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from examples.common.guards import one_line

ROOT = Path(__file__).parents[2]


class ProcessError(Exception):
    """A process failed; the message says which."""


def ask(module: str, job: dict[str, Any], what: str) -> dict[str, Any]:
    """What ``python -m module JOB`` prints as JSON; its bar and its messages go to stderr.

    Raises:
        ProcessError: It failed.
    """
    command = [sys.executable, "-m", module, json.dumps(job)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise ProcessError(f"{what} failed; its message is above")
    return json.loads(done.stdout)


def answer(run: Callable[..., dict[str, Any]]) -> None:
    """The other side of ``ask``: calls ``run`` with the job and prints what it returns."""
    try:
        print(json.dumps(run(**json.loads(sys.argv[1]))))
    except Exception as error:
        sys.exit(one_line(error))


def finished(done: Path) -> dict[str, Any] | None:
    """The JSON that an earlier run wrote; None where it was killed before or meanwhile."""
    try:
        return json.loads(done.read_text())
    except (FileNotFoundError, ValueError):
        return None
