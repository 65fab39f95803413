"""Public checkpoints: each layout recognised by its keys and opened strictly, as a Prior."""

from pathlib import Path

from recon.priors.base import Prior
from recon.priors.errors import CheckpointError
from recon.priors.loaders import (
    adm,
    deepinv_networks,
    diffusers_folder,
    edm,
    edm2,
    lucidrains,
    ncsnpp,
    ncsnv2,
    onnx_file,
    own,
)
from recon.priors.loaders.declared import Declared, in_units
from recon.priors.loaders.files import called, read
from recon.priors.loaders.sidecar import completed
from recon.priors.loaders.states import choose

FAMILIES = (adm, ncsnpp, ncsnv2, edm2, edm, lucidrains, deepinv_networks)


def is_folder(path: Path) -> bool:
    """Whether this is a folder that a prior can be opened from."""
    return path.is_dir() and diffusers_folder.recognises(path)


def open_checkpoint(path: Path, said: Declared, entry: str | None = None) -> Prior:
    """The prior of a public checkpoint, in images from 0 to 1, or as ``said`` has it."""
    name = called(path)
    said, entry = completed(path, said, entry)
    if path.is_dir():
        said.refuse_others(name, diffusers_folder.LAYOUT, diffusers_folder.USES)
        return in_units(name, diffusers_folder.build(path, said), said)
    if path.suffix == ".onnx":
        said.refuse_others(name, onnx_file.LAYOUT, onnx_file.USES)
        return in_units(name, onnx_file.build(path, said), said)
    state = choose(name, read(path), entry)
    if said.network is not None:
        said.refuse_others(name, own.LAYOUT, own.USES)
        return in_units(name, own.build(name, state, said), said)
    for family in FAMILIES:
        if family.recognises(state):
            said.refuse_others(name, family.LAYOUT, family.USES)
            prior = family.build(name, state, said)
            if family is deepinv_networks:
                return prior.as_complex("channels") if said.is_complex else prior
            return in_units(name, prior, said)
    layouts = ", ".join(family.LAYOUT for family in FAMILIES)
    raise CheckpointError(
        f"{name} holds weights but not what they mean (no 'recon' entry in its metadata), and its "
        f"{len(state)} tensors, first {next(iter(state))}, are of no layout known here: {layouts}; "
        "pass network= for a network of your own")
