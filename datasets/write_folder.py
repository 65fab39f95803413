"""Writing a folder of images so that a reader sees the whole new folder or none of it."""

import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from recon.datasets.errors import StrPath

MAKER = "recon"
"""The manufacturer that series written here name; only such are ever replaced."""


def refuse_existing_folder(folder: StrPath, overwrite: bool = False) -> None:
    """Raise now what writing a series into ``folder`` would raise after hours of work.

    Raises
    ------
    FileExistsError
        It holds anything, or with ``overwrite`` anything but a series written here.
    FileNotFoundError, NotADirectoryError, PermissionError
        The folder it is to lie in is missing, is no folder, or cannot be written to.
    """
    folder = Path(folder)
    parent = folder.parent
    if not parent.is_dir():
        kind = NotADirectoryError if parent.exists() else FileNotFoundError
        raise kind(f"{folder.name}: its folder {parent.name!r} is not there: make it first")
    if not os.access(parent, os.W_OK):
        raise PermissionError(f"{folder.name}: its folder {parent.name!r} cannot be written to")
    if not os.path.lexists(folder):
        return
    if folder.is_symlink() or not folder.is_dir():
        raise FileExistsError(f"{folder.name}: exists and is not a folder: choose a name")
    entries = list(folder.iterdir())
    if entries and not overwrite:
        raise FileExistsError(f"{folder.name}: holds {len(entries)} entries: choose a new folder, "
                              "or pass overwrite=True to replace a series")  # fmt: skip
    if not all(map(_is_ours, entries)):
        raise FileExistsError(f"{folder.name}: holds other things than a series written here, "
                              "which would be lost: choose a new folder")  # fmt: skip


@contextmanager
def replacing_folder(folder: StrPath, overwrite: bool) -> Iterator[Path]:
    """A folder beside ``folder`` that takes its place if the block succeeds, all files on disk.

    If anything fails nothing new is left, and what was there stays. A process killed between the
    two renamings of an overwrite leaves both series, whole, under names that begin with a dot.
    """
    folder = Path(folder)
    refuse_existing_folder(folder, overwrite)
    part = folder.with_name(f".{uuid.uuid4().hex}.part")
    old = part.with_suffix(".old")
    part.mkdir()
    try:
        yield part
        for file in part.iterdir():
            with file.open("rb+") as handle:
                os.fsync(handle.fileno())
        _sync_folder(part)
        refuse_existing_folder(folder, overwrite)  # it may have been filled while we wrote
        replaces = folder.exists()
        if replaces:  # a folder cannot be renamed onto one that holds files
            folder.replace(old)
        try:
            part.replace(folder)
        except BaseException:
            if replaces:
                old.replace(folder)
            raise
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    _sync_folder(folder.parent)
    if replaces:
        shutil.rmtree(old)


def _is_ours(path: Path) -> bool:
    """Scanners' exports have the same names, so the header counts too."""
    from pydicom import dcmread

    if not (re.fullmatch(r"IM_\d{4,}\.dcm", path.name) and path.is_file()):
        return False
    try:
        header = dcmread(path, stop_before_pixels=True, specific_tags=["Manufacturer"])
    except Exception:  # whatever it is, it is not ours
        return False
    return header.get("Manufacturer") == MAKER


def _sync_folder(folder: Path) -> None:
    with suppress(OSError):  # not every system can
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
