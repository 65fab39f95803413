"""Records that survive being killed: lines of JSON, each written whole or dropped."""

import fcntl
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from recon import datasets

Record = dict[str, Any]


def to_line(record: Record) -> str:
    """One line; numbers to the last bit, no NaN (which is not JSON)."""
    return json.dumps(record, allow_nan=False, sort_keys=True) + "\n"


def read_records(path: Path) -> list[Record]:
    """All whole records of a file; a last line that was cut short is left out.

    Raises ValueError for damage anywhere else: it was not a killed writer that did that.
    """
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")
    found = []
    for number, line in enumerate(lines[:-1], 1):  # what follows the last newline was cut short
        try:
            found.append(json.loads(line))
        except ValueError as error:
            raise ValueError(f"{path.name}: line {number} of {len(lines) - 1} is damaged: restore "
                             "the file, or delete the line to compute its slice again") from error
    return found


class Log:
    """A file of records to append to; opening it cuts off a last line that was not finished."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records = read_records(path)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        whole = path.read_bytes().rfind(b"\n") + 1
        os.ftruncate(self._file, whole)

    def append(self, records: Iterable[Record]) -> None:
        """Add records, on disk when this returns."""
        records = list(records)
        left = "".join(map(to_line, records)).encode()
        while left:  # a signal or a full disk may cut a write short
            left = left[os.write(self._file, left):]
        os.fsync(self._file)
        self.records += records

    def close(self) -> None:
        os.close(self._file)


def rewrite(path: Path, records: Iterable[Record]) -> None:
    """Put the file's records in the given order, whole or not at all."""
    with datasets.replacing(path, overwrite=True) as (part,):
        part.write_text("".join(map(to_line, records)))


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Hold a folder for this process; the system lets go of it however the process ends.

    Raises BlockingIOError where another run holds it.
    """
    handle = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BlockingIOError(f"{folder.name}: another run is writing here: wait for it, or "
                                  "choose another --out") from None
        yield
    finally:
        os.close(handle)
