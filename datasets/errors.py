"""The one error for files, and the check every reader makes first."""

import os
from pathlib import Path

StrPath = str | os.PathLike[str]

# Enough for every signature, and for the first line of a web page or a pointer file.
HEAD_BYTES = 512
LONGEST = 800  # characters of a message


def base_name(path: StrPath) -> str:
    """The name of a file or folder; ``.`` has one too, and a link keeps its own."""
    return Path(os.path.abspath(path)).name  # noqa: PTH100


class FormatError(ValueError):
    """A file is not what its name or its layout promises.

    The message names the file by its base name (folders may hold private names) and, where one is
    at fault, the key, tag or dimension.
    """

    @classmethod
    def about(cls, path: StrPath, problem: str, key: str | None = None) -> "FormatError":
        """``"<base name>: <key>: <problem>"``; a classmethod so that the error still pickles."""
        where = base_name(path) if key is None else f"{base_name(path)}: {key}"
        told = f"{where}: {problem}"
        if len(told) > LONGEST:
            told = f"{told[: LONGEST - 200]} [...] {told[-200:]}"  # what to do comes last
        # what is quoted of a damaged file may hold anything, even orders to a terminal
        return cls("".join(letter if letter.isprintable() else "?" for letter in told))


def read_head(path: StrPath) -> bytes:
    """The first bytes of a file, refusing what is commonly left by a failed download.

    Raises
    ------
    FormatError
        The file is empty, a web page, or a Git LFS pointer.
    OSError
        It is missing, a folder, or unreadable.
    """
    with Path(path).open("rb") as file:
        head = file.read(HEAD_BYTES)
    if not head:
        raise FormatError.about(path, "the file is empty: copy or download it again")
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<?xml", b"<!--")):
        raise FormatError.about(
            path, "a web page, not data: the download wanted a login, or its link has expired"
        )
    if text.startswith(b"version https://git-lfs"):
        raise FormatError.about(
            path, "a Git LFS pointer, not the data: run `git lfs pull` in its repository"
        )
    return head
