"""What is asked of a GPU, in order of what is learnt a second; every stage within its own time.

``FIRST`` proves and times every kernel, ``SECOND`` has the rivals and what takes long. The limits
of each add up to at most ``SECONDS``; time that a stage leaves goes to those after it.
"""

from __future__ import annotations

from benchmarks.gpu import candidates, ceilings, commands, correct, environment, measure, uses
from benchmarks.gpu.cases import GOALS, HUGE, SEARCHES, SMALL
from benchmarks.gpu.pool import Stage

SECONDS = 330.0

FIRST = (
    Stage("environment", environment.__name__, environment.CASES, 10, case_seconds=9, least=0.5),
    Stage("kernels", correct.__name__, tuple(correct.CHECKS), 40, case_seconds=15, processes=4),
    Stage("ceilings", ceilings.__name__, tuple(ceilings.CASES), 15, case_seconds=8, least=1),
    Stage(
        "goals", measure.__name__, measure.named((*GOALS, *SEARCHES), "ours"), 150,
        case_seconds=12, least=3, fresh=True,
    ),
    Stage(
        "candidates", candidates.__name__, tuple(candidates.CASES), 35, case_seconds=15, least=3
    ),
    Stage(
        "tests", "benchmarks.gpu.suite", None, 60, case_seconds=50, least=1, processes=6,
        optimized=True,
    ),
    Stage("small", measure.__name__, measure.named(SMALL, "pair"), 20, case_seconds=12),
)  # fmt: skip
SECOND = (
    FIRST[0],
    Stage("uses", uses.__name__, tuple(uses.CASES), 40, case_seconds=25),
    Stage("huge", measure.__name__, measure.named((HUGE,), "ours"), 60, case_seconds=60, least=20),
    Stage(
        "sanitizer", commands.__name__, tuple(commands.CASES), 100, case_seconds=85, processes=2,
        optimized=True,
    ),
    Stage(
        "rivals", measure.__name__, measure.rivals((*GOALS, *SEARCHES)), 120, case_seconds=25,
        least=3,
    ),
)  # fmt: skip
FORMS = {"first": FIRST, "second": SECOND}
