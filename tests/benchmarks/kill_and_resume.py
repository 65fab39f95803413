"""How ``recon evaluate`` stands being killed: SIGKILL at random moments, then the bits compared.

    python tests/benchmarks/kill_and_resume.py 50 FOLDER OUT [options of recon evaluate]

Runs once unbroken into OUT/unbroken and then again and again into OUT/killed, killed so often at
random moments, and at last to its end. Where all was done before the last kill, the rest fall into
runs that have only the summary left to write.
"""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path


def results(out: Path) -> dict[str, bytes]:
    """What must be equal: records, table, submissions, figures; not times, maps and locks."""
    kept = [p for p in out.rglob("*") if p.is_file() and "maps" not in p.parts
            and p.name not in (".lock", "timings.jsonl")]
    return {str(p.relative_to(out)): p.read_bytes() for p in kept}


def main(kills: int, folder: str, out: Path, options: list[str]) -> None:
    """Run, kill, compare; exits with 1 where anything differs."""
    out.mkdir(parents=True)
    command = [sys.executable, "-m", "recon", "evaluate", folder, *options, "--out"]
    began = time.monotonic()
    subprocess.run([*command, str(out / "unbroken")], check=True, stdout=subprocess.DEVNULL)
    whole = time.monotonic() - began
    start = 5.0  # seconds in which Python starts: kills there prove little
    each = 1.5 * whole / kills
    source, killed, lines = random.Random(0), 0, []
    while killed < kills:
        process = subprocess.Popen([*command, str(out / "killed")], start_new_session=True,
                                   stdout=subprocess.DEVNULL)
        try:
            if process.wait(source.uniform(0, start + each)):
                sys.exit(f"ended with {process.returncode} after {killed} kills")
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            killed += 1
            path = out / "killed" / "records.jsonl"
            lines.append(path.read_bytes().count(b"\n") if path.exists() else 0)
    subprocess.run([*command, str(out / "killed")], check=True, stdout=subprocess.DEVNULL)
    want, found = results(out / "unbroken"), results(out / "killed")
    wrong = sorted(name for name in want.keys() | found.keys() if want.get(name) != found.get(name))
    print(f"{killed} kills of runs of {whole:.0f} s; records after each: {lines}")
    print(f"{len(want)} files compared; different: {wrong or 'none'}")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), sys.argv[4:])
