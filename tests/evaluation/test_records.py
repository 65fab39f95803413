"""Lines of records: what is left of them wherever a process is killed."""

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest

from recon.evaluation.records import Log, only_writer, read_records, rewrite, to_line

RECORDS: list[dict[str, Any]] = [
    {"file": "a.h5", "slice": n, "squared_error": math.pi * 10.0 ** (-7 * n), "none": None}
    for n in range(3)]


def test_numbers_come_back_to_the_bit(tmp_path: Path) -> None:
    log = Log(tmp_path / "r.jsonl")
    log.append(RECORDS[:2])
    log.append(RECORDS[2:])
    log.close()
    assert read_records(tmp_path / "r.jsonl") == RECORDS == log.records
    assert [json.loads(line) for line in (tmp_path / "r.jsonl").read_text().splitlines()] == RECORDS


def resumed(path: Path, whole: bytes, length: int) -> list[dict[str, Any]]:
    """What a log holds that was cut at ``length`` and then given what was missing."""
    path.write_bytes(whole[:length])
    log = Log(path)
    there = len(log.records)
    assert log.records == RECORDS[:there]
    log.append(RECORDS[there:])
    log.close()
    return read_records(path)


def test_cut_at_any_byte_nothing_is_lost_or_repeated(tmp_path: Path) -> None:
    whole = "".join(map(to_line, RECORDS)).encode()
    for length in range(len(whole) + 1):
        assert resumed(tmp_path / "r.jsonl", whole, length) == RECORDS
        assert (tmp_path / "r.jsonl").read_bytes() == whole


def test_the_check_finds_a_log_that_goes_on_after_a_torn_line(tmp_path: Path) -> None:
    whole = "".join(map(to_line, RECORDS)).encode()
    path = tmp_path / "r.jsonl"
    path.write_bytes(whole[: len(whole) // 2])
    with path.open("ab") as file:
        file.write(whole[len(whole) // 2 - 3:])
    with pytest.raises(ValueError, match=r"r\.jsonl: line 2 of 3 is damaged: restore"):
        read_records(path)


def test_nan_is_no_json(tmp_path: Path) -> None:
    log = Log(tmp_path / "r.jsonl")
    with pytest.raises(ValueError, match="JSON"):
        log.append([{"ssim": math.nan}])
    log.close()
    assert (tmp_path / "r.jsonl").read_bytes() == b""


def test_a_short_write_is_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda handle, data: real(handle, data[:5]))
    log = Log(tmp_path / "r.jsonl")
    log.append(RECORDS)
    log.close()
    assert read_records(tmp_path / "r.jsonl") == RECORDS


def test_rewriting_keeps_the_old_file_until_the_new_one_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "r.jsonl"
    rewrite(path, RECORDS)
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        rewrite(path, RECORDS[:1])
    assert read_records(path) == RECORDS
    assert list(tmp_path.iterdir()) == [path]


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    with only_writer(tmp_path), \
            pytest.raises(BlockingIOError, match="another run is writing"), only_writer(tmp_path):
        pass
    with only_writer(tmp_path):
        pass
