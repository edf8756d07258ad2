"""Goes through the GPU check without a GPU, from a copy of the sources in a folder without git.

Triton is asked for every kernel under the key that it has on the GPU; none is compiled unless
``--rehearse compile`` is given, and none is launched. ``CL_KERNELS_REHEARSE_FAULTS`` makes cases
hang, crash, fail or lose the GPU, as JSON: ``{"clip-65536x768 ours": "hang"}``.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.gpu import offline
from benchmarks.machine import ROOT, commit

RESULTS = ROOT / "build" / "gpu-rehearsal"
SOURCES = "cl_kernels", "benchmarks", "catalogue", "tools", "python_tests", "pyproject.toml"


@contextmanager
def copied_sources() -> Iterator[Path]:
    """A folder with what the check needs, and no more."""
    with tempfile.TemporaryDirectory(prefix="elsewhere-") as place:
        for name in SOURCES:
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy2
            copy(ROOT / name, Path(place) / name)
        yield Path(place)


def main() -> int:
    given = sys.argv[1:]
    defaults = [] if "--rehearse" in given else ["--rehearse", offline.KEYS_ONLY]
    with copied_sources() as sources:
        command = [
            *(sys.executable, "-m", "benchmarks.gpu", *defaults, "--commit", commit()),
            *("--results", str(RESULTS), *given),
        ]
        return subprocess.run(command, cwd=sources).returncode


if __name__ == "__main__":
    sys.exit(main())
