"""Which slices are reconstructed how: fixed before the first one, kept beside the results."""

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from recon import datasets
from recon.datasets import FormatError, Scan
from recon.datasets.nrrd import data_file
from recon.datasets.slices import Slices
from recon.evaluation.identity import environment, prior_hash, prior_of
from recon.evaluation.settings import Sampling, Settings
from recon.evaluation.subject import (
    Subject,
    check_sampling,
    open_subject,
    samplings_of,
    views_left_out,
)
from recon.metrics.conventions import (
    SliceSums,
    fastmri_maximum,
    slice_sums,
    whole_slice_sums,
)

FORMAT = 2  # 1 knew a prior by its weights alone, and nothing of the program


class File(NamedTuple):
    """One volume, as it was when the plan was made."""

    name: str
    size: int
    modified: int
    sha256: str
    kind: str
    acquisition: str
    numbers: tuple[int, ...]
    samplings: tuple[Sampling, ...]
    maximum: float | None
    """The largest value of its reference, of the slices chosen: the range of its PSNR and SSIM;
    None without one."""
    reference: str
    note: str

    @property
    def stem(self) -> str:
        """The name without what says its kind."""
        return datasets.stem(self.name)


class Plan(NamedTuple):
    """What an evaluation does; to go on with one, everything in it must be as it was."""

    settings: Settings
    files: tuple[File, ...]
    left_out: tuple[tuple[str, str], ...]
    """Name and reason of what in the folder is not data that can be read."""
    bad: tuple[tuple[str, str], ...]
    """Name and reason of files that should be, and were left out by ``skip_bad``."""
    environment: dict[str, str]
    prior_sha256: str


class Cell(NamedTuple):
    """Slices of one file, under one sampling and seed and by one sampler."""

    file: File
    sampling: Sampling
    seed: int
    sampler: str

    @property
    def folder(self) -> str:
        """Where its results lie, relative to a folder of results."""
        return f"{self.sampler}/{self.sampling.label}/seed{self.seed}"

    @property
    def key(self) -> tuple[str, str, int, str]:
        return self.file.name, self.sampling.label, self.seed, self.sampler


def cells(plan: Plan) -> Iterator[Cell]:
    """Every cell, file by file."""
    for file in plan.files:
        for sampling in file.samplings:
            for seed in plan.settings.seeds:
                for sampler in plan.settings.samplers:
                    yield Cell(file, sampling, seed, sampler)


def batches(cell: Cell, size: int) -> list[tuple[int, ...]]:
    """The slices of a cell in the groups that are computed together, always the same ones."""
    numbers = cell.file.numbers
    return [numbers[i : i + size] for i in range(0, len(numbers), size)]


def make_plan(folder: Path, settings: Settings, skip_bad: bool,
              say: Callable[[str], None]) -> Plan:
    """Read every file once, so that none can end the work hours later, and fix what to do.

    Raises FormatError for the first file that cannot be used, unless ``skip_bad``.
    """
    prior = prior_of(settings)  # first: the files may take an hour
    settings.check_samplers(prior)
    listed = Slices(folder, skip_bad=skip_bad)
    paths = list(dict.fromkeys(path for path, _ in listed.entries))
    bad, files = list(listed.bad), []
    for i, path in enumerate(paths):
        say(f"reading {path.name} ({i + 1} of {len(paths)})")
        try:
            files.append(_file(path, open_subject(path, settings), settings, say))
        except (ValueError, OSError) as error:  # FormatError is one
            why = str(error).removeprefix(f"{path.name}: ")
            if not skip_bad:
                raise FormatError.about(path, f"{why}; --skip-bad leaves such files out "
                                        "and lists them") from error
            bad.append((path.name, why))
    if not files:
        raise ValueError(f"{folder.name} holds nothing that can be evaluated: "
                         + "; ".join(": ".join(pair) for pair in bad))
    stems = [file.stem for file in files]
    if twice := sorted({stem for stem in stems if stems.count(stem) > 1}):
        raise ValueError(f"several files are called {twice[0]}: rename one, for results go by name")
    return Plan(settings, tuple(files), tuple(listed.left_out), tuple(bad),
                environment(settings), prior_hash(settings, prior))


def _file(path: Path, subject: Subject, settings: Settings, say: Callable[[str], None]) -> File:
    data = subject.data
    ways, left_out = samplings_of(data, settings), views_left_out(data, settings)
    if not ways:
        raise ValueError(left_out)
    if left_out:
        say(f"{path.name}: {left_out}: left out")
    for sampling in ways:
        check_sampling(subject, sampling, settings)
    if not isinstance(data, Scan) and "zero_filled" in settings.samplers:
        raise ValueError("holds CT data, and zero_filled is for k-space: leave one of them out")
    maximum = None
    if subject.references is not None:
        references = subject.references
        maximum = (fastmri_maximum(references) if data.kind.startswith("fastmri") else
                   float(references.max()))
        sums_of(data.kind)(references[0], references[0], maximum)  # raises what a slice would
    size, modified, digest = fingerprint(path)
    notes = [str(data.attributes["note"])] if "note" in data.attributes else []
    return File(path.name, size, modified, digest, data.kind,
                str(data.attributes.get("acquisition", data.kind)), subject.numbers, ways, maximum,
                subject.reference_source, "; ".join([*notes, *([left_out] if left_out else [])]))


def sums_of(kind: str) -> Callable[[Tensor, Tensor, float], SliceSums]:
    """How slices of a kind of file are measured: in fastMRI's square, or whole."""
    return slice_sums if kind.startswith("fastmri") else whole_slice_sums


def _parts(path: Path) -> list[Path]:
    """The files that are one volume: a folder's, both of a BART pair, an observation's partner."""
    if path.is_dir():
        return sorted(p for p in path.iterdir() if p.is_file())
    if path.suffix in (".hdr", ".cfl"):
        return [path.with_suffix(end) for end in (".hdr", ".cfl")]
    if (data := data_file(path)) is not None:
        return [path, data]
    partner = path.with_name(path.name.replace("observation_", "ground_truth_"))
    return [path, partner] if partner != path and partner.exists() else [path]


def place_of(folder: Path, name: str) -> Path:
    """Where a volume of the plan lies: in the folder, or it is the folder, a series of images."""
    inside = folder / name
    return folder if folder.name == name and not inside.exists() else inside


def fingerprint(path: Path) -> tuple[int, int, str]:
    """Size in bytes, last change in ns, and SHA-256 of what a volume lies in."""
    told, size, modified = hashlib.sha256(), 0, 0
    for part in _parts(path):
        about = part.stat()
        size, modified = size + about.st_size, max(modified, about.st_mtime_ns)
        with part.open("rb") as file:
            while chunk := file.read(1 << 22):
                told.update(chunk)
    return size, modified, told.hexdigest()


def unchanged(path: Path, file: File) -> bool:
    """Whether a volume is the one the plan was made for; read whole only where its date differs."""
    try:
        parts = [part.stat() for part in _parts(path)]
    except FileNotFoundError:
        return False
    size, modified = sum(p.st_size for p in parts), max(p.st_mtime_ns for p in parts)
    if (size, modified) == (file.size, file.modified):
        return True
    return size == file.size and fingerprint(path)[2] == file.sha256


def write_plan(path: Path, plan: Plan) -> None:
    """As JSON, whole or not at all."""
    with datasets.replacing(path, overwrite=True) as (part,):
        part.write_text(json.dumps(to_json(plan), indent=1) + "\n")


def to_json(plan: Plan) -> dict[str, Any]:
    """The plan in what JSON knows, as :func:`read_plan` gives it back."""
    files = [file._asdict() | {"samplings": [s._asdict() for s in file.samplings]}
             for file in plan.files]
    told = {"format": FORMAT, **plan._asdict(), "settings": plan.settings._asdict(),
            "files": files}
    return json.loads(json.dumps(told))


def read_plan(path: Path) -> Plan:
    """The plan of a folder of results. Raises ValueError where it is damaged or of before."""
    told: Any = None
    try:
        told = json.loads(path.read_text())
        if told["format"] != FORMAT:
            raise ValueError(f"format {told['format']}")
        kept: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value
                                for key, value in told["settings"].items()}
        settings = Settings(**kept)
        files = tuple(File(**{**file, "numbers": tuple(file["numbers"]),
                              "samplings": tuple(Sampling(**s) for s in file["samplings"])})
                      for file in told["files"])
        left_out, bad = (tuple((n, w) for n, w in told[key]) for key in ("left_out", "bad"))
        return Plan(settings, files, left_out, bad, told["environment"], told["prior_sha256"])
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(told, dict) and told.get("format") == 1:
            raise ValueError(f"{path.name} is of an earlier version of recon, which kept too "
                             "little to tell whether prior and program are still the same: choose "
                             "another --out") from None
        raise ValueError(f"{path.name} is damaged or of another version of recon ({error}): "
                         "choose another --out") from error


def differences(old: Plan, new: Settings) -> list[str]:
    """What has to be as it was and is not, in words."""
    kept, wanted = old.settings._asdict(), json.loads(json.dumps(new._asdict()))
    kept = json.loads(json.dumps(kept))
    found = [f"{key} was {kept[key]}, is {wanted[key]}" for key in wanted
             if kept.get(key) != wanted[key]]
    if list(kept["samplers"]) != list(wanted["samplers"]):
        found.append(f"the samplers' order was {', '.join(kept['samplers'])}")
    now = environment(new)
    return found + [f"{key} was {old.environment.get(key)}, is {value}"
                    for key, value in now.items() if old.environment.get(key) != value]
