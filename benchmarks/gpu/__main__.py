"""Proves and times every kernel on this machine's GPU, unattended, in five and a half minutes.

The results folder gets four files; the last lines printed are a diagnosis. ``--second`` measures
rivals, sanitizes and does what takes long. ``--rehearse`` goes through the same without a GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from types import FrameType

import torch

from benchmarks.gpu import bundle, diagnosis, offline, stages
from benchmarks.gpu.pool import CUBLAS, NO_TIME, Pool, Setting, Stage
from benchmarks.gpu.records import Records, set_aside
from benchmarks.machine import commit, cores
from benchmarks.report import RESULTS
from cl_kernels.backends.triton import configs

# Times as long as on a GPU machine, with its many cores: for a stage, and for one case.
PATIENCE = {offline.COMPILE: (20.0, 20.0), offline.KEYS_ONLY: (4.0, 1.0)}

ENDING = signal.SIGTERM, signal.SIGINT, signal.SIGHUP


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS / "gpu", help="folder to write to")
    parser.add_argument("--commit", default="", help="of the sources, where git cannot say it")
    parser.add_argument(
        "--seconds", type=float, default=stages.SECONDS, help="for all together (330)"
    )
    parser.add_argument("--second", action="store_true", help="the second form")
    names = "; ".join(", ".join(s.name for s in form) for form in stages.FORMS.values())
    parser.add_argument("--only", nargs="+", default=[], help=f"these stages alone, of {names}")
    parser.add_argument("--match", default="", help="only cases with this in their names")
    parser.add_argument(
        "--bundle", type=Path, default=bundle.FOLDER, help="folder that was precompiled"
    )
    parser.add_argument(
        "--rehearse", choices=(offline.KEYS_ONLY, offline.COMPILE),
        help="without a GPU: compile what it would run, or only note it",
    )  # fmt: skip
    parser.add_argument(
        "--arch", type=int, default=90, choices=offline.GPUS, help="of the GPU rehearsed for (90)"
    )
    return parser.parse_args()


def results_folder(wanted: Path) -> Path:
    """A folder that can be written to: another, and a line that says so, if this one cannot."""
    try:
        wanted.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=wanted):
            return wanted.resolve()
    except OSError as error:
        other = Path(tempfile.mkdtemp(prefix="gpu-check-results-"))
        print(f"gpu-check: cannot write to {wanted} ({error.strerror}); results go to {other}")
        return other


def wanted_stages(options: argparse.Namespace) -> list[Stage]:
    form = stages.FORMS["second" if options.second else "first"]
    unknown = set(options.only) - {stage.name for stage in form}
    if unknown:
        names = ", ".join(stage.name for stage in form)
        sys.exit(f"gpu-check: --only: expected some of {names}; got {', '.join(unknown)}")
    wanted = {"environment", *options.only}  # no result without the machine that it is of
    chosen = [stage for stage in form if not options.only or stage.name in wanted]
    if options.rehearse:
        for_stage, for_case = PATIENCE[options.rehearse]
        options.seconds *= for_stage
        chosen = [stage.rehearsed(cores(), for_stage, for_case) for stage in chosen]
    of_match = [stage for stage in chosen if stage.name != "environment"]
    names = [case for stage in of_match for case in stage.cases or (options.match,)]
    if options.match and not any(options.match in name for name in names):
        sys.exit(f"gpu-check: --match: no case has {options.match!r} in its name")
    return [replace(s, match=options.match) if s in of_match else s for s in chosen]


def worker_setting(options: argparse.Namespace, records: Records) -> Setting:
    # Triton's own variables are part of its keys, or name another cache, or interpret.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TRITON_")}
    # A bundle without line numbers is a third of the size.
    environment |= {"PYTHONUNBUFFERED": "1", "TRITON_DISABLE_LINE_INFO": "1", **CUBLAS}
    kept = os.environ.get("TRITON_CACHE_DIR") if options.rehearse else None
    environment["TRITON_CACHE_DIR"] = kept or str(records.cache)
    rehearsal = ["--rehearse", options.rehearse, "--arch", str(options.arch)]
    arguments = tuple(rehearsal) if options.rehearse else ()
    return Setting(records.logs, environment, arguments)


def run(wanted: list[Stage], setting: Setting, records: Records, until: float) -> None:
    """The stages one after the other; the next one's processes start while one runs."""
    pool: Pool | None = None
    following: Pool | None = None
    try:
        for i, stage in enumerate(wanted):
            start = perf_counter()
            if start + stage.least > until:
                for case in stage.cases or ("start",):
                    records.add(stage.name, case, {"error": NO_TIME})
                if following is not None:  # its processes wait for nothing
                    following.end()
                    following = None
                continue
            say(f"{start - records.start:5.0f} s  {stage.name} ...")
            pool = following or Pool(stage, setting)
            following = Pool(wanted[i + 1], setting) if i + 1 < len(wanted) else None
            later = sum(other.seconds for other in wanted[i + 1 :])
            limit = max(start + stage.seconds, until - later)  # what was saved before is its too
            pool.run(
                min(limit, until), lambda case, result, s=stage: records.add(s.name, case, result)
            )
            records.seconds[stage.name] = round(perf_counter() - start, 1)
            records.save(diagnosis.diagnose(records))
    finally:
        for left in (pool, following):
            if left is not None:
                left.end()
        records.save(diagnosis.diagnose(records))


def say(text: str) -> None:
    """Prints it; a reader that went away ends no run."""
    with contextlib.suppress(OSError):
        print(text, flush=True)


def _ended(number: int, frame: FrameType | None) -> None:
    for other in ENDING:  # once: what was learnt is being written
        signal.signal(other, signal.SIG_IGN)
    raise SystemExit(f"gpu-check: ended by {signal.Signals(number).name}")


def main() -> int:
    start = perf_counter()
    options = arguments()
    if not options.rehearse and not torch.cuda.is_available():
        sys.exit("gpu-check: PyTorch sees no CUDA GPU on this machine")
    for number in ENDING:
        signal.signal(number, _ended)
    wanted = wanted_stages(options)
    folder = results_folder(options.results)
    if moved := set_aside(folder):
        say(moved)
    records = Records(folder, {"commit": options.commit or commit(), "rehearsed": options.rehearse})
    records.start = start
    if options.rehearse != offline.KEYS_ONLY:
        arch = options.arch if options.rehearse else configs.architecture(torch.device("cuda"))
        records.about["bundle"] = bundle.bring(options.bundle, records.cache, arch)
        say("\n".join(records.about["bundle"]))
    try:
        run(wanted, worker_setting(options, records), records, start + options.seconds)
    finally:
        if records.unwritten:
            say(f"gpu-check: not everything was written to {records.folder}: {records.unwritten}")
        say(f"\nresults in {records.folder}\n\n{diagnosis.diagnose(records)}")
    return int(bool(records.failed()))


if __name__ == "__main__":
    sys.exit(main())
