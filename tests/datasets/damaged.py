"""What the readers make of a damaged file: a FormatError, or no harm."""

from collections.abc import Callable
from pathlib import Path

from recon.datasets import FormatError


def refusals(path: Path, data: bytes, *uses: Callable[[Path], object]) -> int:
    """How many of ``uses`` refuse a file of ``data`` as damaged; any other error passes through."""
    path.write_bytes(data)
    refused = 0
    for use in uses:
        try:
            use(path)
        except FormatError:
            refused += 1
    return refused
