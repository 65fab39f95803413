"""``recon check operator``: is a forward model of one's own what the samplers take it for?"""

import enum
import importlib
import importlib.util
import inspect
import sys
from pathlib import Path
from typing import Annotated, Any

import typer


class Precisions(enum.StrEnum):
    """What to compute in."""

    both = "both"
    float32 = "float32"


def operator(
    target: Annotated[str, typer.Argument(
        metavar="MODULE:OBJECT", help="an operator, or a function without arguments that returns "
        "one: my_package.my_module:A, or my_file.py:make_operator")],
    batch: Annotated[list[str] | None, typer.Option(
        help="a batch to try, as 3 or 2,3; again for another; wanted where the operator holds one "
             "mask or kernel for each item")] = None,
    precision: Annotated[Precisions, typer.Option(
        help="float32 where a library knows no other")] = Precisions.both,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")] = "cpu",
    seed: Annotated[int, typer.Option(min=0, help="of the random images")] = 0,
) -> None:
    """Measure what an operator promises: one row each, and how to mend what fails.

    Shapes, precision, batches, copies, linearity, the adjoint, gradients, solve; then its norm, the
    time of one forward and one adjoint, and the memory they take. Exits with 1 if a row fails.
    """
    import torch

    from recon.operators import check

    A = load_operator(target).to(device)
    batches = tuple(_batch(text) for text in batch) if batch else ((), (3,), (2, 3))
    kinds = (torch.float32,) if precision is Precisions.float32 else (torch.float32, torch.float64)
    report = check(A, batches=batches, precisions=kinds, seed=seed)
    typer.echo(str(report))
    if not report.passed:
        raise typer.Exit(1)


def load_operator(target: str) -> Any:
    """The operator that ``module:object`` names, from the working directory or what is installed.

    Raises ValueError, TypeError or ImportError in words that say what to change.
    """
    from recon.operators import Operator

    where, colon, name = target.rpartition(":")
    if not (colon and where and name):
        raise ValueError(f"want MODULE:OBJECT, as my_module:A or my_file.py:A, got {target!r}")
    found: Any = _module(where)
    for part in name.split("."):
        if not hasattr(found, part):
            there = [n for n, value in vars(found).items() if isinstance(value, Operator)
                     or (inspect.isfunction(value) and value.__module__ == found.__name__)
                     ] if inspect.ismodule(found) else []
            hint = f": it has {', '.join(there)}" if there else ""
            raise ValueError(f"{where} has no {part!r}{hint}")
        found = getattr(found, part)
    if isinstance(found, Operator):
        return found
    if not callable(found):
        raise TypeError(f"{target}: want an Operator or a function that returns one, got "
                        f"{type(found).__name__}: wrap functions with from_functions")
    needed = [p.name for p in inspect.signature(found).parameters.values()
              if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if needed:
        raise TypeError(f"{target} wants {', '.join(needed)}: name an operator that is built, or a "
                        "function without arguments that builds it")
    made = found()
    if not isinstance(made, Operator):
        raise TypeError(f"{target}() gives {type(made).__name__}, want an Operator")
    return made


def _module(where: str) -> Any:
    if where.endswith(".py"):
        path = Path(where)
        if not path.is_file():
            raise ValueError(f"{path.name}: no such file")
        spec = importlib.util.spec_from_file_location(path.stem, path)
        if spec is None or spec.loader is None:
            raise ValueError(f"{path.name} is no Python file")
        module = importlib.util.module_from_spec(spec)
        sys.modules.setdefault(path.stem, module)
        sys.path.insert(0, str(path.parent.resolve()))
        spec.loader.exec_module(module)
        return module
    sys.path.insert(0, str(Path.cwd()))
    return importlib.import_module(where)


def _batch(text: str) -> tuple[int, ...]:
    try:
        sizes = tuple(int(n) for n in text.split(",") if n.strip())
    except ValueError:
        sizes = (0,)
    if any(n < 1 for n in sizes):
        raise ValueError(f"--batch wants sizes, as 3 or 2,3, got {text!r}")
    return sizes
