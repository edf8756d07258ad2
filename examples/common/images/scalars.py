"""TensorBoard scalars, where tensorboard is installed."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from examples.common.images.train import Log


@contextmanager
def tensorboard(folder: Path, first_step: int) -> Iterator[Log | None]:
    """Writes what is logged below ``folder``; gives None where tensorboard is missing.

    Args:
        folder: ``tensorboard --logdir`` of it shows the run.
        first_step: Where the run goes on; what a killed run logged beyond it is dropped.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        print(f"TensorBoard scalars are off ({error}): `pip install tensorboard`")
        yield None
        return

    def log(step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            writer.add_scalar(name.replace(" ", "_"), value, step)

    writing = SummaryWriter(str(folder), purge_step=first_step + 1)
    with _quiet_thread(), writing as writer:
        yield log


@contextmanager
def _quiet_thread() -> Iterator[None]:
    """The writer's thread prints no traceback where it cannot write: the next ``log`` says it."""
    before = threading.excepthook

    def hook(args: threading.ExceptHookArgs) -> None:
        if not issubclass(args.exc_type, OSError):
            before(args)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = before
