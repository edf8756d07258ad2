"""``python -m examples.methods``: all methods at equal steps, and a table of what they bring."""

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from examples.common.command import ended
from examples.common.guards import check_output_folder, writing
from examples.common.images import command
from examples.common.lock import hold
from examples.common.process import ask, finished
from examples.common.ranks import expect_alone
from examples.methods import arm
from examples.methods.catalogue import METHODS
from examples.methods.config import PRESETS, make_config
from examples.methods.table import Results, markdown, plot

DISK = 2**25  # bytes: a checkpoint of each run
NOTE = """\
Probe: logistic regression on 5 labelled held-out images a class, accuracy on all others. k-NN: 10
neighbours, leave one out. mAP: each held-out image the query for the others, or for those in
another font. Memory: the most that steps hold, beyond libraries and images. Seconds: the median of
all steps. Std, rank: of the embeddings of two views of held-out images, 1 and the width if they
are spread in all directions. MoCo v2 encodes one view of a pair by each network, others both."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the comparison; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.methods",
        description="Train eight methods alike and compare them. Killed? The same command resumes.",
    )
    add = parser.add_argument
    add("--data", nargs="+", choices=list(PRESETS), help="data sets; default: both, quick: digits")
    add("--methods", nargs="+", choices=list(METHODS), default=list(METHODS), help="default: all")
    add("--epochs", type=int, default=argparse.SUPPRESS, help="passes over the training images")
    add("--seed", type=int, default=argparse.SUPPRESS, help="of weights, order and augmentations")
    add(
        "--device", default=argparse.SUPPRESS, help="cpu, cuda, ...; default: a GPU if there is one"
    )
    add("--out", type=Path, help="default: runs/methods")
    add("--fresh", action="store_true", help="delete the runs in --out that would be resumed")
    add("--quick", action="store_true", help="a few seconds, to see that it works")
    return ended(parser, arguments, run, command.ERRORS)


def run(options: argparse.Namespace) -> str:
    """Trains what is not yet trained; returns the text to print."""
    expect_alone("methods")
    folder = options.out or Path("runs", "methods" + "-quick" * options.quick)
    check_output_folder(folder, DISK)
    with hold(folder), writing(folder, OSError):
        chosen = options.data or (["digits"] if options.quick else list(PRESETS))
        results = {data: _of_data(data, folder, options) for data in chosen}
        text = f"{markdown(results)}\n\n{NOTE}"
        files = [folder / f"methods.{ending}" for ending in ("json", "md", "png")]
        files[0].write_text(json.dumps(_without_histories(results), indent=1) + "\n")
        files[1].write_text(text + "\n")
        plot(results, files[2])
    return "\n".join([text, "", "Written:", *(f"  {path}" for path in files)])


def _of_data(data: str, folder: Path, options: argparse.Namespace) -> Results:
    given = {name: vars(options)[name] for name in ("epochs", "seed", "device") if name in options}
    results = {}
    for method in options.methods:
        config = asdict(make_config({"data": data, "method": method, **given}, quick=options.quick))
        out = folder / data / method
        if options.fresh:
            shutil.rmtree(out, ignore_errors=True)
        results[method] = _of_method(config, out, options.quick)
    return results


def _of_method(config: dict[str, Any], out: Path, here: bool) -> dict[str, Any]:
    """What a run of these settings brought, now or before."""
    out.mkdir(parents=True, exist_ok=True)
    done = out / "result.json"
    method = METHODS[config["method"]]
    asked = json.loads(json.dumps({"config": config, "method": asdict(method)}))
    if (result := finished(done)) and result.get("asked") == asked:
        return result
    job = {"config": config, "out": str(out.resolve())}
    name = f"{method.title} on {config['data']}"
    print(name, file=sys.stderr)
    # A process of its own takes seconds to start, but nobody else's memory is counted.
    found = arm.run(**job) if here else ask("examples.methods.arm", job, name)
    result = {"asked": asked, **found}
    done.write_text(json.dumps(result, indent=1) + "\n")
    return result


def _without_histories(results: dict[str, Results]) -> dict[str, Results]:
    """What is short enough to keep; each run's ``result.json`` has all of it."""
    return {
        data: {
            method: {name: value for name, value in result.items() if name != "history"}
            for method, result in of.items()
        }
        for data, of in results.items()
    }


if __name__ == "__main__":
    sys.exit(main())
