"""How ``recon evaluate`` stands being killed: SIGKILL at random moments, then the bits compared.

    python tests/benchmarks/kill_and_resume.py 50 FOLDER OUT [options of recon evaluate]

Runs once unbroken into OUT/unbroken; then again and again into OUT/killed, killed so often at
random moments, and at last to its end; then, where Ray is installed, with two workers into OUT/ray.
One in five meets a run before its first record; the others are spread over the rest, so that about
the last of them meets its end. Each run is a forked process: starting Python takes no time from the
kills. On Linux.
"""

import importlib.util
import os
import random
import signal
import sys
import time
from pathlib import Path

import recon.cli
import recon.evaluation.run  # once for all runs


def results(out: Path) -> dict[str, bytes]:
    """What must be equal: records, table, submissions, figures; not times, maps and locks."""
    kept = [p for p in out.rglob("*") if p.is_file() and ".maps" not in p.parts
            and p.name not in (".lock", "timings.jsonl")]
    return {str(p.relative_to(out)): p.read_bytes() for p in kept}


def lines(out: Path) -> int:
    path = out / "records.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def begun(arguments: list[str]) -> int:
    """A process of its own that runs ``recon evaluate`` with these arguments."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            sys.argv = ["recon", "evaluate", *arguments]
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.setsid()
            recon.cli.main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        finally:
            os._exit(code)
    return child


def ended(child: int, out: Path) -> float:
    """Wait for a run, which must end well; seconds until its first record."""
    began, first = time.monotonic(), 0.0
    while True:
        gone, status = os.waitpid(child, os.WNOHANG)
        if not first and (gone or lines(out)):
            first = time.monotonic() - began
        if gone:
            break
        time.sleep(0.01)
    if code := os.waitstatus_to_exitcode(status):
        sys.exit(f"ended with {code}")
    return first


def killed(arguments: list[str], out: Path, kills: int, start: float, work: float) -> list[int]:
    """Kill so many runs, and let one more end; the number of records after each kill."""
    source = random.Random(0)
    found: list[int] = []
    while len(found) < kills:
        moment = (source.uniform(0, start) if source.random() < 0.2 else
                  start + source.uniform(0, 2.5 * work / kills))
        child = begun(arguments)
        until, gone = time.monotonic() + moment, 0
        while not gone and time.monotonic() < until:
            time.sleep(0.005)
            gone, status = os.waitpid(child, os.WNOHANG)
        if not gone:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            found.append(lines(out))
        elif code := os.waitstatus_to_exitcode(status):
            sys.exit(f"ended with {code} after {len(found)} kills")
        else:
            start *= 0.8  # nothing was left but the summary
    ended(begun(arguments), out)
    return found


def main(kills: int, folder: str, out: Path, options: list[str]) -> None:
    """Run, kill, compare; exits with 1 where anything differs."""
    out.mkdir(parents=True)
    began = time.monotonic()
    start = ended(begun([folder, *options, "--out", str(out / "unbroken")]), out / "unbroken")
    whole = time.monotonic() - began
    after = killed([folder, *options, "--out", str(out / "killed")], out / "killed", kills, start,
                   whole - start)
    print(f"{kills} kills of runs of {whole:.0f} s; records after each: {after}", flush=True)
    others = ["killed"]
    if importlib.util.find_spec("ray"):
        ended(begun([folder, *options, "--out", str(out / "ray"), "--engine", "ray",
                     "--workers", "2"]), out / "ray")
        others.append("ray")
    want, failed = results(out / "unbroken"), False
    for name in others:
        found = results(out / name)
        wrong = sorted(n for n in want.keys() | found.keys() if want.get(n) != found.get(n))
        print(f"{name}: {len(want)} files compared; different: {', '.join(wrong) or 'none'}")
        failed |= bool(wrong)
    sys.exit(failed)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), sys.argv[4:])
