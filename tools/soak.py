"""Kills a training run at random moments and resumes it, until it ends as an unbroken one would.

``python -m tools.soak [--kills N] [--seed S] [--module M] [-- OPTIONS OF M]``

The module's command takes ``--out`` and resumes when it is repeated. Every ``*.pt`` file that the
two runs leave must then hold the same values bit by bit, but for the time they took.
"""

import argparse
import random
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

ROOT = Path(__file__).parents[1]
DEFAULT = shlex.split("--no-report --device cpu --width 4 --batch-size 64 --epochs 60")
LEFT = (".partial", ".lock")  # of which a run that came to its end leaves none
TIMES = {"seconds"}  # entries of a checkpoint that may differ


class SoakError(Exception):
    """A run failed, or resumed runs ended elsewhere; the message says where."""


def soak(module: str, options: Sequence[str], kills: int, seed: int, folder: Path) -> str:
    """Kills ``module`` with SIGKILL ``kills`` times; returns what was done.

    Kills fall into the last part of the start-up and into training. A run that comes to its end
    all the same is checked, and the next kills fall upon a new one.

    Raises:
        SoakError: See there.
    """
    unbroken, start_up, training = _unbroken(module, options, folder / "unbroken")
    moments = random.Random(seed)
    runs, killed = 0, 0
    with tqdm(total=kills, desc="kills") as bar:
        while killed < kills:
            process = _start(module, options, folder / f"broken-{runs}")
            try:
                time.sleep(moments.uniform(0.8 * start_up, start_up + training / kills))
            finally:
                ended = process.poll() is not None
                process.kill()
            if ended:
                _check(process, unbroken, folder / f"broken-{runs}")
                runs += 1
            else:
                process.wait()
                killed += 1
                bar.update()
    broken = folder / f"broken-{runs}"
    files = _check(_start(module, options, broken), unbroken, broken)
    return f"killed {kills} times and resumed: {', '.join(files)} bitwise the same"


def _unbroken(module: str, options: Sequence[str], folder: Path) -> tuple[Path, float, float]:
    """The run to compare with, and the seconds to its first checkpoint and from there."""
    began = time.monotonic()
    process = _start(module, options, folder)
    while not any(folder.rglob("*.pt")) and process.poll() is None:
        time.sleep(0.01)
    start_up = time.monotonic() - began
    _wait(process, folder)
    return folder, start_up, time.monotonic() - began - start_up


def _check(process: subprocess.Popen, unbroken: Path, broken: Path) -> list[str]:
    """Waits for the end of the run, compares, and gives the names of the files compared."""
    _wait(process, broken)
    files = sorted(str(path.relative_to(unbroken)) for path in unbroken.rglob("*.pt"))
    if not files:
        raise SoakError("the run left no checkpoint")
    for file in files:
        if different := list(differences(_load(unbroken / file), _load(broken / file))):
            raise SoakError(f"{file} differs in {', '.join(different)}")
    if left := sorted(path.name for path in broken.rglob("*") if path.name.endswith(LEFT)):
        raise SoakError(f"kills left {', '.join(left)} behind")
    return files


def differences(one: Any, other: Any, name: str = "") -> Iterator[str]:
    """Names of what differs bitwise between two nested containers, times apart."""
    if type(one) is not type(other):
        yield name
    elif isinstance(one, torch.Tensor):
        same = one.dtype == other.dtype and one.shape == other.shape
        if not same or not torch.equal(_bits(one), _bits(other)):
            yield name
    elif isinstance(one, dict):
        for key in sorted((one.keys() | other.keys()) - TIMES, key=str):
            yield from differences(one.get(key), other.get(key), f"{name}.{key}".lstrip("."))
    elif isinstance(one, list | tuple) and len(one) == len(other):
        for i, pair in enumerate(zip(one, other, strict=True)):
            yield from differences(*pair, f"{name}[{i}]")
    elif one != other:
        yield name


def _load(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


def _bits(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous().flatten().view(torch.uint8)


def _start(module: str, options: Sequence[str], out: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", module, *options, "--out", str(out)]
    with _log(out).open("w") as log:
        return subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)


def _wait(process: subprocess.Popen, out: Path) -> None:
    if process.wait():
        raise SoakError(f"a run failed: {_log(out).read_text().strip()}")


def _log(out: Path) -> Path:
    return out.with_suffix(".log")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.soak", description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--module", default="examples.simclr")
    parser.add_argument("options", nargs="*", help=f"of the module (simclr: {' '.join(DEFAULT)})")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        try:
            print(
                soak(given.module, given.options or DEFAULT, given.kills, given.seed, Path(folder))
            )
        except SoakError as error:
            print(f"{parser.prog}: {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
