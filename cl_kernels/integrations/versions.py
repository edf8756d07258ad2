"""Which versions of a library its classes here were written for."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def require(package: str, least: tuple[int, int], below: tuple[int, int]) -> None:
    """
    Raises:
        ImportError: The package is not installed, or in another version: its classes here call, and
            inherit from, what it had.
    """
    shown = ">={}.{},<{}.{}".format(*least, *below)
    try:
        found = version(package)
    except PackageNotFoundError as error:
        raise ImportError(f"{package}: expected a version {shown}, got none") from error
    number = tuple(int(part) for part in found.split(".")[:2])
    if not least <= number < below:
        raise ImportError(
            f"{package}: expected a version {shown}, whose classes those here inherit from, "
            f"got {found}: install one, or call the losses of cl_kernels themselves"
        )
