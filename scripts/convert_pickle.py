"""Turn a pickled checkpoint into safetensors, once, where you trust who made it.

Unpickling runs whatever code the file holds; EDM's network-snapshot-*.pkl bring the source of their
classes along. Run this yourself, in the environment the file was made for (for EDM its checkout, on
``PYTHONPATH``), best in a container without network and secrets; recon itself never does it:

    python convert_pickle.py network-snapshot.pkl network-snapshot.safetensors --run-its-code

It takes the entry ``ema`` where there is one, or the one named with ``--entry``, and writes its
tensors under their names. It needs torch and safetensors, not recon.
"""

import argparse
import pickle
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

AVERAGES = ("ema", "model_ema", "ema_model", "ema_state_dict")
NETWORKS = ("model", "net", "state_dict", "network")


def main() -> None:
    """Read the arguments, unpickle, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--entry", help="which entry of the file is the network")
    parser.add_argument("--run-its-code", action="store_true",
                        help="I trust who made this file: run what it holds")
    given = parser.parse_args()
    if not given.run_its_code:
        sys.exit(f"{given.source.name} runs code when opened: say --run-its-code where you trust "
                 "who made it")
    if given.target.exists():
        sys.exit(f"{given.target.name} exists: choose another name")
    network, entry = chosen(opened(given.source), given.entry)
    tensors = state(network)
    if not tensors:
        sys.exit(f"{entry} holds no tensors by name (score_sde's average lists them without): "
                 "say --entry")
    part = given.target.with_name(given.target.name + ".part")
    save_file(tensors, part)
    part.replace(given.target)
    print(f"{given.target.name}: {len(tensors)} tensors, "
          f"{sum(t.numel() for t in tensors.values()):,} numbers")


def opened(path: Path) -> Any:
    """Whatever the file holds; this runs its code."""
    if path.read_bytes()[:2] == b"PK":
        return torch.load(path, map_location="cpu", weights_only=False)
    with path.open("rb") as file:
        return pickle.load(file)


def chosen(found: Any, entry: str | None) -> tuple[Any, str]:
    """The average where there is one, else the network, and what to call it."""
    if not isinstance(found, Mapping) or all(isinstance(v, torch.Tensor) for v in found.values()):
        return found, "the file"
    names = (entry,) if entry is not None else (*AVERAGES, *NETWORKS)
    name = next((n for n in names if found.get(n) is not None), None)
    if name is None:
        sys.exit(f"want one of {', '.join(names)}, got {', '.join(map(str, found))}: say --entry")
    print(f"entry {name!r} of {', '.join(map(str, found))}")
    return found[name], f"entry {name!r}"


def state(network: Any) -> dict[str, torch.Tensor]:
    """Names and tensors, each in memory of its own."""
    found = network.state_dict() if isinstance(network, torch.nn.Module) else network
    if not isinstance(found, Mapping):
        sys.exit(f"want a network or its tensors, got a {type(found).__name__}: say --entry")
    return {str(k): v.detach().cpu().clone().contiguous() for k, v in found.items()
            if isinstance(v, torch.Tensor)}


if __name__ == "__main__":
    main()
