"""One run at a time in a folder."""

import json
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows: nothing is locked there
    fcntl = None

NAME = "run.lock"


class LockError(Exception):
    """Another run has the folder; the message says which."""


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Keeps other runs out of ``folder`` and names this one in its file ``run.lock``.

    The system lets go of the lock when its process ends in whatever way. So a file that is left
    and not locked is that of a dead process, if it ran on this host: it is taken over, and halves
    of files that it was writing are deleted.

    Raises:
        LockError: A live process, or one of another host, has the folder.
    """
    if fcntl is None:
        yield
        return
    path = folder / NAME
    file = _lock(path)
    try:
        _take_over(path, _read(file))
        try:
            for half in folder.glob("*.pt*.partial"):
                half.unlink(missing_ok=True)
            os.truncate(file, 0)
            os.pwrite(file, json.dumps(_this_process()).encode(), 0)
            yield
        finally:
            path.unlink(missing_ok=True)
    finally:
        os.close(file)


def _lock(path: Path) -> int:
    """The locked file's descriptor."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            assert fcntl is not None
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = _read(file)
            os.close(file)
            raise LockError(
                f"{path.parent} is in use by another run ({_name(holder)}); wait for its end, or "
                "name another folder with --out"
            ) from error
        if path.exists() and os.path.samestat(os.fstat(file), path.stat()):
            return file
        os.close(file)  # its holder ended, and deleted the file, between the two calls


def _take_over(path: Path, holder: dict[str, Any]) -> None:
    if not holder:
        return
    if holder.get("host") != platform.node():
        raise LockError(
            f"{path.parent} is in use by a run on another host ({_name(holder)}); if that has "
            f"ended, delete {path}"
        )
    print(f"took over {path}: its run has died ({_name(holder)})", file=sys.stderr)


def _this_process() -> dict[str, Any]:
    since = datetime.now().astimezone().isoformat(timespec="seconds")
    return {"pid": os.getpid(), "host": platform.node(), "since": since}


def _read(file: int) -> dict[str, Any]:
    """Who wrote the file; empty before it was written whole."""
    try:
        holder = json.loads(os.pread(file, 4096, 0))
    except ValueError:
        return {}
    return holder if isinstance(holder, dict) else {}


def _name(holder: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in holder.items()) or "not named yet"
