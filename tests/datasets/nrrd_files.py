"""Small NRRD files, byte by byte from the format's definition."""

import bz2
import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

LPS = {"space": "left-posterior-superior", "space directions": "(1,0,0) (0,2,0) (0,0,3)",
       "space origin": "(10,20,30)"}  # fmt: skip
PACK: dict[str, Callable[[bytes], bytes]] = {
    "raw": bytes, "gzip": gzip.compress, "gz": gzip.compress, "bzip2": bz2.compress,
    "bz2": bz2.compress}  # fmt: skip


def counted(*shape: int) -> NDArray[np.int16]:
    return np.arange(np.prod(shape), dtype=np.int16).reshape(shape)


def laid_out(path: Path, values: NDArray[Any] | bytes, fields: dict[str, str | None] | None = None,
             **more: str | None) -> Path:  # fmt: skip
    """An attached header and its image: ``values`` are ``(z, y, x)``, written as short.

    Of ``fields``, and of ``more`` with underscores for spaces, None leaves one out.
    """
    sizes = "4 3 2"
    if not isinstance(values, bytes):
        sizes, values = " ".join(map(str, values.shape[::-1])), values.astype("<i2").tobytes()
    header: dict[str, str | None] = {
        "space dimension": None, "type": "short", "dimension": "3", "sizes": sizes,
        "endian": "little", "encoding": "raw"}  # fmt: skip
    header |= (fields or {}) | {key.replace("_", " "): value for key, value in more.items()}
    lines = [f"{key}: {value}" for key, value in header.items() if value is not None]
    packed = PACK.get(header["encoding"] or "", bytes)(values)
    path.write_bytes("\n".join(["NRRD0005", "# a comment", *lines, "", ""]).encode() + packed)
    return path
