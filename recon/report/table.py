"""Plain tables of numbers, for terminals and text files."""

from collections.abc import Mapping


def comparison(rows: Mapping[str, Mapping[str, float]], digits: int = 2) -> str:
    """An aligned table: one line per method, one column per number."""
    columns = list(next(iter(rows.values())))
    wide = max(len(name) for name in rows)
    lines = [" " * wide + "".join(f"  {c:>12}" for c in columns)]
    for name, numbers in rows.items():
        cells = "".join(f"  {numbers[c]:>12.{digits}f}" for c in columns)
        lines.append(f"{name:<{wide}}{cells}")
    return "\n".join(lines)
