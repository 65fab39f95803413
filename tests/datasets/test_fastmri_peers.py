"""fastMRI's layout against the programs others read it with, on a small synthetic set."""

import argparse
import importlib.util
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from recon import datasets, metrics
from recon.datasets import Scan
from recon.datasets.slices import Slices
from recon.datasets.write import write_submission
from recon.metrics import conventions
from recon.operators.mri.fourier import fft2c, ifft2c

ROOT = Path(__file__).resolve().parents[2]
RAW = ROOT.parent / "shared" / "data" / "raw" / "brain_8ch_full"
WHY = "the fastmri package is not installed: pip install --no-deps fastmri==0.3.0"
needs_bart = pytest.mark.skipif(shutil.which("bart") is None, reason="BART is not installed")

Array = NDArray[Any]
Transform = Callable[[Tensor], Tensor]


def noise(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 1e-4 * torch.randn(*shape, dtype=torch.complex64, generator=generator)


def make(out: Path, brains: Path, **options: Any) -> list[Path]:
    """``scripts/synthetic_fastmri.py``."""
    spec = importlib.util.spec_from_file_location("made", ROOT / "scripts/synthetic_fastmri.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return list(module.make(out, [brains], **options))


@pytest.fixture(scope="module")
def brains(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two heads of noise within an ellipsoid, 6 mm voxels, one of them flipped left to right."""
    nibabel = pytest.importorskip("nibabel", reason="nibabel is not installed")
    folder = tmp_path_factory.mktemp("brains")
    axes = [np.linspace(-1.2, 1.2, n) for n in (28, 34, 28)]
    inside = np.square(np.stack(np.meshgrid(*axes, indexing="ij"))).sum(0) < 1
    for name, sign in (("a.nii.gz", 1), ("b.nii", -1)):
        texture = np.random.default_rng(3).random(inside.shape) * 50 + 50
        head = np.where(inside, texture, 0).astype(np.float32)
        nibabel.save(nibabel.Nifti1Image(head, np.diag([sign * 6.0, 6, 6, 1])), folder / name)
    return folder


@pytest.fixture(scope="module")
def made(brains: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    make(folder, brains, slices=2, size=24)
    return folder


def each(folder: Path) -> list[tuple[Scan, Path, int]]:
    slices = Slices(folder)
    found = []
    for i, (path, number) in enumerate(slices.entries):
        sample = slices[i]
        assert isinstance(sample, Scan)
        found.append((sample, path, number))
    return found


def rejects(check: Callable[..., None], faults: list[tuple[Any, ...]]) -> None:
    for fault in faults:
        with pytest.raises(AssertionError):
            check(*fault)


# The set itself


def test_synthetic_set(brains: Path, made: Path, tmp_path: Path) -> None:
    scans = [datasets.open(path) for path in sorted(made.iterdir())]
    assert len(scans) == 6
    assert len({tuple(scan.kspace.shape[-2:]) for scan in scans}) >= 5
    assert {scan.kspace.shape[1] for scan in scans} == {4, 8, 16}
    assert {scan.attributes["acquisition"] for scan in scans} >= {"AXT2", "AXFLAIR", "AXT1"}
    padded = [scan for scan in scans if scan.mask is not None]
    assert len(padded) == 2
    assert all(datasets.fastmri.fully_sampled(scan) for scan in scans)
    assert all(scan.reference is not None and 1e-5 < float(scan.reference.max()) < 1e-3
               for scan in scans)  # fmt: skip
    for scan in scans:  # square pixels, though images are not
        assert scan.attributes["pixel_x_mm"] == pytest.approx(scan.attributes["pixel_y_mm"], 1e-4)
    for seed, equal in ((0, True), (1, False)):
        for path in make(tmp_path / str(seed), brains, slices=2, size=24, seed=seed):
            again, first = datasets.open(path), datasets.open(made / path.name)
            assert torch.equal(again.kspace, first.kspace) == equal
    with pytest.raises(FileExistsError):
        make(made, brains, slices=2, size=24)
    with pytest.raises(FileNotFoundError, match=r"no \.nii"):
        make(tmp_path / "none", made)


# Readers


def check_as_fastmri(ours: Scan, theirs: tuple[Any, ...]) -> None:
    """A sample of ours and one of ``fastmri.data.SliceDataset``."""
    kspace, mask, target, attributes, name, _ = theirs
    assert np.array_equal(ours.kspace[0], kspace)
    assert mask is None
    assert ours.reference is not None
    assert np.array_equal(ours.reference[0], target)
    assert ours.name == name
    own = dict(ours.attributes)
    for kind, prefix in (("encoding_size", "encoded"), ("recon_size", "recon")):
        assert tuple(own.pop(f"{prefix}_{axis}") for axis in "xyz") == attributes.pop(kind)
    extra = {key for key in own if key.startswith("pixel_")} | {"note"}
    assert attributes.pop("patient_id") == "0" * 64
    assert attributes.pop("source") in ours.attributes or "source" in str(ours.attributes["note"])
    assert {key: value for key, value in own.items() if key not in extra} == attributes


def test_slice_dataset_of_fastmri(made: Path) -> None:
    data = pytest.importorskip("fastmri.data", reason=WHY)
    theirs = data.SliceDataset(made, "multicoil")
    ours = each(made)
    assert len(theirs) == len(ours) == 12
    for i, (scan, path, number) in enumerate(ours):
        assert theirs[i][4:] == (path.name, number)
        check_as_fastmri(scan, theirs[i])
    scan = ours[0][0]
    off = {**scan.attributes, "padding_left": 1}
    rejects(check_as_fastmri, [
        (ours[1][0], theirs[0]),
        (scan._replace(kspace=scan.kspace.conj()), theirs[0]),
        (scan._replace(kspace=scan.kspace.mT), theirs[0]),
        (scan._replace(attributes=off), theirs[0]),
    ])  # fmt: skip


HEADER = (
    '<ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD"><encoding><encodedSpace><matrixSize>'
    "<x>12</x><y>{width}</y><z>1</z></matrixSize></encodedSpace><reconSpace><matrixSize><x>6</x>"
    "<y>{recon}</y><z>1</z></matrixSize></reconSpace><encodingLimits><kspace_encoding_step_1>"
    "<minimum>0</minimum><maximum>{last}</maximum><center>{centre}</center>"
    "</kspace_encoding_step_1></encodingLimits></encoding></ismrmrdHeader>"
)


def save(path: Path, kspace: Tensor, **about: Any) -> Path:
    about = {"width": kspace.shape[-1], "recon": 6, "last": kspace.shape[-1] - 1,
             "centre": kspace.shape[-1] // 2} | about  # fmt: skip
    with h5py.File(path, "w") as file:
        file["kspace"] = kspace
        file["ismrmrd_header"] = HEADER.format(**about)
        if "mask" in about:
            file["mask"] = about["mask"]
    return path


@pytest.mark.parametrize("width", [10, 11])
@pytest.mark.parametrize(("centre", "last"), [(5, 9), (3, 5), (2, 7), (5, 10), (0, 4), (7, 9)])
def test_padding_of_fastmri(tmp_path: Path, width: int, centre: int, last: int) -> None:
    data = pytest.importorskip("fastmri.data", reason=WHY)
    save(tmp_path / "a.h5", noise(2, 2, 12, width), centre=centre, last=last)
    theirs = data.SliceDataset(tmp_path, "multicoil")[0][3]
    ours = datasets.open(tmp_path / "a.h5").attributes

    def check(left: int, right: int) -> None:
        assert (left, right) == (theirs["padding_left"], theirs["padding_right"])

    left, right = int(ours["padding_left"]), int(ours["padding_right"])
    check(left, right)
    rejects(check, [(left, right - 1), (left + 1, right)])


def test_deepinv_reader(made: Path) -> None:
    module = pytest.importorskip("deepinv.datasets", reason="deepinv is not installed")
    theirs = module.FastMRISliceDataset(made, rng=torch.Generator())
    ours = each(made)
    assert len(theirs) == len(ours)

    def check(kspace: Tensor, target: Tensor, other: tuple[Tensor, Tensor]) -> None:
        assert float((torch.view_as_real(kspace).movedim(-1, 0) - other[1]).abs().max()) == 0
        assert float((target - other[0]).abs().max()) == 0

    for i, (scan, _, _) in enumerate(ours):
        assert scan.reference is not None
        check(scan.kspace[0], scan.reference, theirs[i])
    scan = ours[0][0]
    assert scan.reference is not None
    conjugated = scan.kspace[0].conj().resolve_conj()
    rejects(check, [(conjugated, scan.reference, theirs[0]),
                    (scan.kspace[0], scan.reference.flip(-1), theirs[0])])  # fmt: skip


def test_mrpro_image(made: Path) -> None:
    """mrpro takes the readout for the last axis: its images are ours transposed."""
    why = "mrpro is not installed"
    phantoms = pytest.importorskip("mrpro.phantoms", reason=why)
    reconstruction = pytest.importorskip("mrpro.algorithms.reconstruction", reason=why)
    path = sorted(made.glob("*AXT2_200*"))[0]
    kdata = phantoms.FastMRIKDataDataset([path], single_slice=False)[0]
    theirs = reconstruction.DirectReconstruction(kdata, csm=None)(kdata).rss().squeeze()
    scan = datasets.open(path)
    assert scan.reference is not None

    def check(image: Tensor) -> None:
        scale = float(theirs.abs().max())
        torch.testing.assert_close(image / scale, theirs / scale, rtol=0, atol=1e-6)

    check(scan.reference.mT)
    image = ifft2c(scan.kspace)
    assert scan.crop is not None
    check(datasets.centre_crop(image, scan.crop).abs().square().sum(1).sqrt().mT)
    rejects(check, [(scan.reference,), (scan.reference.mT.roll(1, -1),)])


# Transform, target, crop


def unshifted(x: Tensor) -> Tensor:
    """Planted fault: fftshift where ifftshift belongs, which odd sizes tell apart."""
    moved = torch.fft.fft2(torch.fft.fftshift(x, (-2, -1)), norm="ortho")
    return torch.fft.fftshift(moved, (-2, -1))


SIZES = [(5, 7), (6, 7), (64, 38)]


def check_transform(ours: Transform, theirs: Transform, size: tuple[int, int]) -> None:
    x = 1e4 * noise(3, *size)
    torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", SIZES)
def test_fastmri_transform(size: tuple[int, int]) -> None:
    fastmri = pytest.importorskip("fastmri", reason=WHY)
    pairs = ((fft2c, fastmri.fft2c), (ifft2c, fastmri.ifft2c))
    for ours, theirs in pairs:
        def split(x: Tensor, theirs: Transform = theirs) -> Tensor:
            return torch.view_as_complex(theirs(torch.view_as_real(x)))

        check_transform(ours, split, size)
    if size[0] % 2 or size[1] % 2:
        rejects(check_transform, [(unshifted, fft2c, size)])
    rejects(check_transform, [(ifft2c, fft2c, size)])


def bart(folder: Path, *command: str, x: Tensor) -> Tensor:
    """``bart command x`` over leading slices ``(n, H, W)``, which become BART's coils."""
    datasets.write_cfl(folder / "in", x.movedim(0, -1)[:, :, None], overwrite=True)
    subprocess.run(["bart", *command, "in", "out"], cwd=folder, check=True, capture_output=True)
    found = datasets.read_cfl(folder / "out")
    found = found.reshape(*found.shape, *[1] * (2 - found.ndim))  # trailing ones are dropped
    return found.reshape(*found.shape[:2], -1).movedim(-1, 0)


@needs_bart
@pytest.mark.parametrize("size", SIZES)
def test_bart_transform(tmp_path: Path, size: tuple[int, int]) -> None:
    for ours, command in ((fft2c, ("fft", "-u", "3")), (ifft2c, ("fft", "-iu", "3"))):
        def theirs(x: Tensor, command: tuple[str, ...] = command) -> Tensor:
            return bart(tmp_path, *command, x=x)

        check_transform(ours, theirs, size)
        wrong = fft2c if ours is ifft2c else ifft2c
        rejects(check_transform, [(wrong, theirs, size)])


def centred(kspace: Array, size: tuple[int, int], start: Callable[[int, int], int],
            combine: Callable[[Array], Array]) -> Array:  # fmt: skip
    """The target from ``numpy.fft`` in double precision: cut, magnitude, combined coils."""
    image = np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(kspace.astype(np.complex128), (-2, -1)),
                                         norm="ortho"), (-2, -1))  # fmt: skip
    top, left = (start(n, m) for n, m in zip(kspace.shape[-2:], size, strict=True))
    return combine(np.abs(image[..., top : top + size[0], left : left + size[1]]))


def test_target_is_that_of_a_numpy_script(made: Path, tmp_path: Path) -> None:
    datasets.write_fastmri(tmp_path / "odd.h5", noise(2, 3, 16, 12), recon_size=(7, 9))
    for path in (*sorted(made.iterdir()), tmp_path / "odd.h5"):
        scan = datasets.open(path)
        assert scan.reference is not None
        assert scan.crop is not None
        reference, kspace, size = scan.reference.numpy(), scan.kspace.numpy(), scan.crop

        def check(want: Array, reference: Array = reference) -> None:
            np.testing.assert_allclose(reference, want, rtol=0, atol=1e-6 * reference.max())

        def rss(x: Array) -> Array:
            return np.sqrt((x**2).sum(1))

        def fastmris(n: int, m: int) -> int:
            return (n - m) // 2

        def barts(n: int, m: int) -> int:
            return n // 2 - m // 2

        check(centred(kspace, size, fastmris, rss))
        rejects(check, [(centred(kspace, size, fastmris, lambda x: x.sum(1)),),
                        (centred(kspace.conj(), size, fastmris, rss),)])  # fmt: skip
        if path.name == "odd.h5":
            rejects(check, [(centred(kspace, size, barts, rss),)])


@needs_bart
def test_crop_of_fastmri_and_of_bart(tmp_path: Path) -> None:
    """6 to 3: fastMRI's begins at 1, BART's at 2."""
    transforms = pytest.importorskip("fastmri.data.transforms", reason=WHY)
    for n in range(3, 9):
        for m in range(1, n + 1):
            x = torch.arange(n * n).view(1, n, n) + 0j
            ours = datasets.centre_crop(x, (m, m))
            assert torch.equal(ours, transforms.center_crop(x, (m, m)))
            theirs = bart(tmp_path, "resize", "-c", "0", str(m), "1", str(m), x=x)
            assert torch.equal(ours, theirs) == (n % 2 == 1 or m % 2 == 0)


# Masks


def check_bits(ours: Tensor, theirs: Tensor) -> None:
    """Equal to the bit, so that a -0 is not a +0."""
    assert ours.shape == theirs.shape
    assert ours.contiguous().numpy().tobytes() == theirs.contiguous().numpy().tobytes()


def test_apply_mask_of_fastmri(tmp_path: Path) -> None:
    transforms = pytest.importorskip("fastmri.data.transforms", reason=WHY)
    kspace = noise(2, 3, 12, 10)
    mask = torch.tensor([0, 1, 0, 0, 1, 1, 1, 0, 1, 0])

    def mask_func(*_: object) -> tuple[Tensor, int]:
        return mask.float()[:, None].clone(), 3

    masked, _, _ = transforms.apply_mask(torch.view_as_real(kspace), mask_func)
    path = tmp_path / "a.h5"
    for stored in (kspace, kspace * mask):  # the file's own zeros may carry signs
        scan = datasets.open(save(path, stored, mask=mask.numpy()))
        check_bits(torch.view_as_real(scan.kspace), masked)
    scan = datasets.open(save(path, kspace * mask))
    check_bits(torch.view_as_real(scan.kspace), masked)
    multiplied = torch.view_as_real(kspace) * mask.float()[:, None]
    rejects(check_bits, [(multiplied, masked)])


def test_mask_of_varnet(tmp_path: Path) -> None:
    """For test files; padding on the left wipes out fastMRI's mask of a single coil, not ours."""
    transforms = pytest.importorskip("fastmri.data.transforms", reason=WHY)
    data = pytest.importorskip("fastmri.data", reason=WHY)
    sampled = torch.tensor([1, 1, 0, 1, 1, 1, 0, 1, 1, 1, 1]).bool()
    padded = torch.tensor([0, 0, 1, 1, 1, 1, 1, 1, 1, 0, 0]).bool()

    def check(mask: Tensor | None, theirs: Tensor) -> None:
        assert mask is not None
        assert torch.equal(mask, theirs.flatten())

    for single in (False, True):
        kspace = torch.where(sampled & padded, noise(2, 3, 12, 11), 0)
        kspace = kspace[:, 0] if single else kspace
        folder = tmp_path / str(single)
        folder.mkdir()
        save(folder / "a.h5", kspace, mask=sampled.numpy(), centre=3, last=6)
        challenge = "singlecoil" if single else "multicoil"
        theirs = data.SliceDataset(folder, challenge, transforms.VarNetDataTransform())[0]
        mask = datasets.open(folder / "a.h5").mask
        if single:
            assert not bool(theirs.mask.any())
            check(mask, sampled & padded)
        else:
            check(mask, theirs.mask)
            rejects(check, [(sampled, theirs.mask), (None, theirs.mask)])
            assert torch.equal(torch.view_as_real(datasets.open(folder / "a.h5").kspace[0]),
                               theirs.masked_kspace)  # fmt: skip


@pytest.mark.parametrize(("width", "recon"), [(10, 11), (10, 10), (10, 6), (7, 12)])
def test_flair_203(tmp_path: Path, width: int, recon: int) -> None:
    """Narrower than the header's image: fastMRI's transform cuts to a square."""
    transforms = pytest.importorskip("fastmri.data.transforms", reason=WHY)
    data = pytest.importorskip("fastmri.data", reason=WHY)
    path = save(tmp_path / "a.h5", noise(2, 2, 12, width), recon=recon)
    theirs = data.SliceDataset(tmp_path, "multicoil", transforms.UnetDataTransform("multicoil"))
    crop = datasets.open(path).crop
    assert crop == tuple(theirs[0].image.shape)
    assert (crop == (width, width)) == (width < recon)


def test_schema_of_ismrmrd_refuses_what_m4raw_has() -> None:
    """Why headers are not read by it."""
    xsd = pytest.importorskip("ismrmrd.xsd", reason="ismrmrd is not installed")
    text = HEADER.format(width=10, recon=6, last=9, centre=5).replace(
        "<encoding>", "<measurementInformation><repetitionInformation>2</repetitionInformation>"
        "</measurementInformation><encoding>", 1)  # fmt: skip
    assert datasets.parse_header("a.h5", text).padding == (0, 10)
    with pytest.raises(Exception, match="repetitionInformation"):
        xsd.CreateFromDocument(text)


# Submissions


def by_hand(targets: Path, predictions: Path, acquisition: str | None = None) -> dict[str, float]:
    """fastMRI's metrics in a few lines: of volumes, with the volume's maximum, then their mean."""
    from skimage.metrics import structural_similarity

    scores: list[list[float]] = []
    for path in sorted(targets.iterdir()):
        with h5py.File(path) as file, h5py.File(predictions / path.name) as other:
            if acquisition is not None and file.attrs["acquisition"] != acquisition:
                continue
            a, b = file["reconstruction_rss"][()], other["reconstruction"][()]
        side = a.shape[-1]
        a, b = (x[:, (x.shape[1] - side) // 2 :][:, :side, (x.shape[2] - side) // 2 :][..., :side]
                for x in (a, b))  # fmt: skip
        error, peak = ((a.astype(float) - b) ** 2), float(a.max())
        similar = [structural_similarity(x, y, data_range=peak)  # type: ignore[no-untyped-call]
                   for x, y in zip(a, b, strict=True)]  # fmt: skip
        scores.append([error.mean(), error.sum() / (a.astype(float) ** 2).sum(),
                       10 * np.log10(peak**2 / error.mean()), np.mean(similar)])  # fmt: skip
    names = ("MSE", "NMSE", "PSNR", "SSIM")
    return dict(zip(names, np.mean(scores, 0).tolist(), strict=True)) | {"volumes": len(scores)}


@pytest.fixture(scope="module")
def submitted(made: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Targets, not all of them square, and blurred copies as predictions."""
    predictions = tmp_path_factory.mktemp("predictions")
    for path in made.iterdir():
        scan = datasets.open(path)
        assert scan.reference is not None
        blurred = (scan.reference + scan.reference.roll(1, -1)) / 2
        write_submission(predictions, scan.name, blurred)
    return made, predictions


@pytest.mark.parametrize("acquisition", [None, "AXT2", "AXFLAIR"])
def test_submission_is_evaluated(submitted: tuple[Path, Path], acquisition: str | None) -> None:
    module = pytest.importorskip("fastmri.evaluate", reason=WHY)
    targets, predictions = submitted
    arguments = argparse.Namespace(target_path=targets, predictions_path=predictions,
                                   acquisition=acquisition, acceleration=None)  # fmt: skip
    theirs = module.evaluate(arguments, "reconstruction_rss")
    means = {name: float(np.squeeze(value)) for name, value in theirs.means().items()}
    chosen = {path.name for path, _ in Slices(targets, acquisition=acquisition).entries}
    assert len(theirs.metrics["NMSE"]) == len(chosen)

    def check(ours: dict[str, float]) -> None:
        for name, value in ours.items():
            assert value == pytest.approx(means[name], rel=1e-6), name

    ours = by_hand(targets, predictions, acquisition)
    assert ours.pop("volumes") == len(chosen)
    check(ours)
    pairs = []
    for name in sorted(chosen):
        reference = datasets.open(targets / name).reference
        assert reference is not None
        with h5py.File(predictions / name) as file:
            pairs.append((torch.from_numpy(file["reconstruction"][()]), reference))
    scores = [conventions.fastmri(image, reference) for image, reference in pairs]
    check({"NMSE": float(np.mean([score.nmse for score in scores])),
           "PSNR": float(np.mean([score.psnr for score in scores])),
           "SSIM": float(np.mean([score.ssim for score in scores]))})  # fmt: skip
    # planted faults: of slices rather than of volumes
    of_slices = [metrics.psnr(image, reference).double().mean() for image, reference in pairs]
    ranges = [metrics.ssim(image, reference).mean() for image, reference in pairs]
    rejects(check, [({"PSNR": float(torch.stack(of_slices).mean())},),
                    ({"SSIM": float(torch.stack(ranges).mean())},)])  # fmt: skip


def test_evaluate_refuses_what_is_cut_too_small(
    submitted: tuple[Path, Path], tmp_path: Path
) -> None:
    """And names that are not the input's; larger images it cuts itself."""
    module = pytest.importorskip("fastmri.evaluate", reason=WHY)
    targets, predictions = submitted
    arguments = argparse.Namespace(target_path=targets, predictions_path=tmp_path,
                                   acquisition="AXFLAIR", acceleration=None)  # fmt: skip
    for path in predictions.iterdir():
        shutil.copy(path, tmp_path / path.name)
    name = next(path.name for path in targets.iterdir() if "AXFLAIR" in path.name)
    reference = datasets.open(targets / name).reference
    assert reference is not None
    larger = torch.nn.functional.pad(0.99 * reference, [2, 2, 2, 2])
    write_submission(tmp_path, name, larger, overwrite=True)
    means = module.evaluate(arguments, "reconstruction_rss").means()
    assert float(means["NMSE"]) == pytest.approx(1e-4, rel=1e-4)
    write_submission(tmp_path, name, reference[..., 1:], overwrite=True)
    with pytest.raises(ValueError, match="Invalid shapes"):
        module.evaluate(arguments, "reconstruction_rss")
    (tmp_path / name).unlink()
    write_submission(tmp_path, name, reference, v2=True)
    with pytest.raises(FileNotFoundError):
        module.evaluate(arguments, "reconstruction_rss")


def test_v2_names_are_those_of_fastmri(tmp_path: Path) -> None:
    utils = pytest.importorskip("fastmri.utils", reason=WHY)
    image = torch.rand(2, 8, 8, generator=torch.Generator().manual_seed(0))
    (tmp_path / "ours").mkdir()
    for name in ("file1000000.h5", "file1000001_v2.h5"):
        write_submission(tmp_path / "ours", name, image, v2=True)
    both = dict.fromkeys(("file1000000.h5", "file1000001_v2.h5"), image.numpy())
    utils.save_reconstructions(both, tmp_path / "theirs")
    utils.convert_fnames_to_v2(tmp_path / "theirs")
    names = [sorted(path.name for path in (tmp_path / who).iterdir()) for who in ("ours", "theirs")]
    assert names[0] == names[1]
    for name in names[0]:
        with h5py.File(tmp_path / "ours" / name) as a, h5py.File(tmp_path / "theirs" / name) as b:
            assert list(a) == list(b)
            assert a["reconstruction"].dtype == b["reconstruction"].dtype
            assert np.array_equal(a["reconstruction"], b["reconstruction"])


# The measured slice


@needs_bart
@pytest.mark.skipif(not RAW.with_suffix(".hdr").exists(), reason="no raw data beside the project")
def test_measured_slice(brains: Path, tmp_path: Path) -> None:
    """BART's own root-sum-of-squares of real raw data is the reference we write and read."""
    path = make(tmp_path, brains, volumes=1, slices=1, size=24, raw=RAW)[-1]
    scan = datasets.open(path)
    assert scan.reference is not None
    assert scan.mask is None
    coils = bart(tmp_path, "fft", "-iu", "3", x=scan.kspace[0])
    datasets.write_cfl(tmp_path / "coils", coils.movedim(0, -1)[:, :, None])
    subprocess.run(["bart", "rss", "8", "coils", "rss"], cwd=tmp_path, check=True)
    theirs = datasets.read_cfl(tmp_path / "rss").real

    def check(image: Tensor) -> None:
        torch.testing.assert_close(image, theirs, rtol=0, atol=1e-6 * float(theirs.max()))

    check(scan.reference[0])
    rejects(check, [(scan.reference[0].flip(0),), (scan.reference[0] * 1.00001,)])
