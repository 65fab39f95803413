"""Nonlinear operators: values against other libraries, derivatives against differences."""

import io
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import chisquare, poisson
from skimage import data
from torch import Tensor
from torch.nn.functional import avg_pool2d, pad

from recon.operators import (
    JPEG,
    Clipping,
    Counts,
    NonlinearBlur,
    Operator,
    PhaseRetrieval,
    Quantisation,
    SmoothJPEG,
    Space,
    StraightThroughJPEG,
    StraightThroughQuantisation,
    check,
    draw_counts,
    gaussian_kernel,
    random_phases,
)
from recon.operators.jpeg import _CHROMA, _doubled
from recon.operators.sensor import light, stored

F64 = torch.float64


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = F64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def relative(got: Tensor, want: Tensor | np.ndarray) -> float:
    want = torch.as_tensor(want)
    assert got.shape == want.shape
    return float((got - want).abs().max() / want.abs().max())


REAL, COMPLEX = Space((1, 6, 5)), Space((1, 6, 5), torch.complex64)
EXACT: dict[str, Callable[[], Operator]] = {
    "amplitude": lambda: PhaseRetrieval(REAL, oversampling=2),
    "amplitude, complex": lambda: PhaseRetrieval(COMPLEX),
    "coded": lambda: PhaseRetrieval(COMPLEX, random_phases(3, (6, 5))),
    "coded intensity": lambda: PhaseRetrieval(REAL, random_phases(2, (6, 5)), 2, intensity=True),
    "masked by real numbers": lambda: PhaseRetrieval(COMPLEX, noise(2, 6, 5), intensity=True),
    "clipping": lambda: Clipping(REAL, 2.0, -1.0, 1.0),
    "quantisation": lambda: Quantisation(REAL, 5, -1.0, 1.0),
    "blur of light": lambda: NonlinearBlur(gaussian_kernel(0.8, 3), REAL),
    "blur of light, cut": lambda: NonlinearBlur(noise(3, 2), REAL, "valid"),
    "counts": lambda: Counts(REAL, 20.0, torch.rand(6, 5)),
    "JPEG": lambda: JPEG(Space((3, 9, 10)), 50, low=-3.0, high=3.0),
    "smooth JPEG": lambda: SmoothJPEG(Space((3, 9, 10)), 20, low=-3.0, high=3.0),
    "smooth JPEG of luma": lambda: SmoothJPEG(Space((1, 5, 16)), 80, "4:4:4", -3.0, 3.0),
}
SURROGATES: dict[str, Callable[[], Operator]] = {
    "quantisation": lambda: StraightThroughQuantisation(REAL, 5, -1.0, 1.0),
    "JPEG": lambda: StraightThroughJPEG(Space((3, 9, 10)), 50, low=-3.0, high=3.0),
}


def pushed(A: Operator, x: Tensor, d: Tensor) -> Tensor:
    return (A(x + 1e-6 * d) - A(x - 1e-6 * d)) / 2e-6


@pytest.mark.parametrize("name", EXACT)
def test_vjp_is_that_of_differences_and_of_autograd(name: str) -> None:
    A = EXACT[name]()
    kind = torch.complex128 if A.domain.is_complex else F64
    x, d = noise(2, *A.domain.shape, dtype=kind), noise(2, *A.domain.shape, seed=1, dtype=kind)
    v = noise(2, *A.range.shape, seed=2)
    # <J d, v> = Re <d, J^H v>, along one direction and by automatic differentiation of forward
    left, pull = (pushed(A, x, d) * v).sum(), A.vjp(x, v)
    right = (d.conj() * pull).sum().real
    assert float(left) == pytest.approx(float(right), rel=1e-5, abs=1e-6)
    assert relative(Operator.vjp(A, x, v) + 1, pull + 1) < 1e-12
    turned = 1j * pull if A.domain.is_complex else pull / 2
    for wrong in (2 * pull, -pull, pull.roll(1, -1), turned):
        if bool(pull.any()):
            assert float(left) != pytest.approx(float((d.conj() * wrong).sum().real), rel=1e-3)


@pytest.mark.parametrize("name", SURROGATES)
def test_surrogates_have_the_values_and_say_they_are_none(name: str) -> None:
    A, exact = SURROGATES[name](), EXACT[name]()
    x, v = noise(3, *A.domain.shape), noise(3, *A.range.shape, seed=1)
    assert torch.equal(A(x), exact(x))
    assert not exact.vjp(x, v).any()  # zero wherever it exists
    pull = A.vjp(x, v)
    assert float(pull.norm()) > 0.1 * float(v.norm())
    assert relative(Operator.vjp(A, x, v), pull) < 1e-14  # autograd follows the same surrogate
    failed = {row.name for row in check(A).rows if not row.passed}
    assert failed == {"vjp by differences", "gradcheck"}


def test_surrogate_of_quantisation_is_that_of_clipping() -> None:
    A = StraightThroughQuantisation(Space((1, 4)), 3)
    x = torch.tensor([[-0.5, 0.2, 0.9, 1.5]])
    assert A.vjp(x, torch.ones(1, 4)).tolist() == [[0, 1, 1, 0]]
    assert Clipping(Space((1, 4)), 3.0).vjp(x, torch.ones(1, 4)).tolist() == [[0, 3, 0, 0]]


@pytest.mark.parametrize("kind", [F64, torch.complex128])
def test_diffraction_patterns_are_numpys(kind: torch.dtype) -> None:
    x, masks = noise(2, 1, 6, 5, dtype=kind), random_phases(3, (6, 5)).to(torch.complex128)
    plain = PhaseRetrieval(Space((1, 6, 5), kind), oversampling=2)
    padded = np.fft.fft2(x.numpy(), s=(12, 10), norm="ortho")
    assert relative(plain(x), np.abs(padded)) < 1e-13
    coded = PhaseRetrieval(Space((1, 6, 5), kind), masks, intensity=True)
    fields = np.fft.fft2(masks.numpy() * x.numpy(), norm="ortho")
    assert relative(coded(x), np.abs(fields) ** 2) < 1e-13
    assert relative(coded(x), np.abs(fields)) > 0.1
    # energy: the transform is orthonormal, and diffusers take nothing away
    assert float(coded(x).sum()) == pytest.approx(3 * float(x.abs().square().sum()))
    assert relative(plain(x), plain((-x).roll((0, 0), (-1, -2)))) < 1e-14  # one sign for all
    assert relative(coded(x), coded(x.conj().flip(-1, -2))) > 0.1  # a code tells mirrors apart


def test_phase_at_zero_has_no_pull() -> None:
    A = PhaseRetrieval(REAL)
    assert torch.equal(A.vjp(REAL.zeros(), torch.ones(1, 6, 5)), REAL.zeros())


def test_camera_curve_is_that_of_srgb() -> None:
    skimage = pytest.importorskip("skimage.color")
    values = torch.linspace(0, 1, 101, dtype=F64)
    # scikit-image's way from sRGB to XYZ begins with the curve; a grey picture is a multiple of
    # the white point there
    xyz = skimage.rgb2xyz(np.repeat(values.numpy()[None, :, None], 3, -1))[0, :, 1]
    assert relative(light(values), xyz / xyz[-1]) < 1e-4
    assert relative(stored(light(3 * values - 1)), 3 * values - 1) < 1e-7  # odd, and beyond white
    wrong = values**2.2  # the planted fault: a bare power
    assert relative(wrong, xyz / xyz[-1]) > 3e-3


def test_light_adds_up_and_stored_values_do_not() -> None:
    A = NonlinearBlur(torch.full((1, 2), 0.5), Space((1, 1, 8)))
    x = torch.zeros(1, 1, 8, dtype=F64)
    x[..., 4] = 1
    got = A(x)[0, 0, 3:5]
    assert relative(light(got), torch.tensor([0.5, 0.5], dtype=F64)) < 1e-7
    assert float(got[0]) == pytest.approx(0.7354, abs=1e-4)  # mid light is stored as 188 of 255
    flat = torch.full((1, 1, 8), 0.3, dtype=F64)
    assert relative(A(flat), flat) < 1e-7


def pillow(picture: np.ndarray, quality: int, subsampling: int) -> Tensor:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=quality, subsampling=subsampling)
    return torch.from_numpy(np.array(Image.open(file)).astype(float).reshape(*picture.shape[:2], -1)
                            ).movedim(-1, 0)


def picture(height: int, width: int) -> np.ndarray:
    image = data.astronaut()  # type: ignore[no-untyped-call]
    return np.ascontiguousarray(image[100 : 100 + height, 150 : 150 + width])


@pytest.mark.parametrize("quality", [10, 50, 90])
def test_grey_jpeg_is_pillows(quality: int) -> None:
    grey = picture(112, 128)[..., 1]
    want = pillow(grey, quality, 0)
    A = JPEG(Space((1, 112, 128)), quality, low=0.0, high=255.0)
    got = A(torch.from_numpy(grey.copy()).double()[None])
    blocks = (got - want)[0].reshape(14, 8, 16, 8).abs().amax((1, 3))
    # the blocks in which no coefficient is rounded the other way
    assert float((blocks <= 1).double().mean()) > 0.85
    assert float((got - want).square().mean().sqrt()) < 0.8
    loss = float((got - torch.from_numpy(grey.copy()).double()).square().mean().sqrt())
    assert loss > 3.5 * float((got - want).square().mean().sqrt())
    other = JPEG(A.domain, quality + 5, low=0.0, high=255.0)  # the planted fault: another table
    wrong = other(torch.from_numpy(grey.copy()).double()[None]) - want
    assert float(wrong.square().mean().sqrt()) > 1.5


@pytest.mark.parametrize(("subsampling", "code", "limit"), [("4:4:4", 0, 1.2), ("4:2:0", 2, 1.2)])
@pytest.mark.parametrize("quality", [10, 50, 90])
def test_colour_jpeg_is_pillows(subsampling: str, code: int, limit: float, quality: int) -> None:
    colour = picture(115, 133)  # no multiple of 8 or 16
    want = pillow(colour, quality, code)
    x = torch.from_numpy(colour.copy()).double().movedim(-1, 0) / 255
    space = Space((3, 115, 133))
    error = float((255 * JPEG(space, quality, subsampling)(x) - want).square().mean().sqrt())
    assert error < limit
    other = {"4:4:4": "4:2:0", "4:2:0": "4:4:4"}[subsampling]
    for fault in (JPEG(space, quality, other)(x), JPEG(space, quality, subsampling)(x.flip(0)),
                  JPEG(space, max(1, quality - 5), subsampling)(x)):
        assert float((255 * fault - want).square().mean().sqrt()) > 1.3 * error
    smooth = 255 * SmoothJPEG(space, quality, subsampling)(x)
    assert float((smooth - want).square().mean().sqrt()) < float(
        (255 * x - want).square().mean().sqrt())


class HalvedFirst(JPEG):
    """The planted fault: chroma is filled up to whole blocks after it is halved, always upwards."""

    def _chroma(self, plane: Tensor) -> Tensor:
        height, width = plane.shape[-2:]
        plane = pad(plane, (0, width % 2, 0, height % 2), mode="replicate")
        plane = self._coded(self.byte(avg_pool2d(plane, 2)), _CHROMA)
        return self.doubled(_doubled(_doubled(plane).mT).mT)[..., :height, :width]


@pytest.mark.parametrize(("height", "width"), [(16, 20), (9, 10), (16, 7), (17, 5), (6, 4), (5, 2),
                                               (1, 1)])
def test_edges_and_small_pictures_are_pillows(height: int, width: int) -> None:
    colours = np.random.default_rng(0).integers(0, 256, (40, height, width, 3), dtype=np.uint8)
    colours[:20] = (230, 0, 0)
    colours[:20, :, -1] = (0, 0, 255)  # the next column of blocks is filled with it
    x = torch.from_numpy(colours).double().movedim(-1, 1) / 255
    want = torch.stack([pillow(one, 75, 2) for one in colours])
    space = Space((3, height, width))

    def check(A: JPEG) -> None:
        off = (255 * A(x) - want).abs()
        assert float(off[:20].max()) <= 2
        assert float((off[20:] > 1.01).double().mean()) <= 0.16  # coefficients near half an entry

    check(JPEG(space, 75))
    if width > 1:
        with pytest.raises(AssertionError):
            check(HalvedFirst(space, 75))


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_flat_greys_are_pillows(dtype: torch.dtype) -> None:
    """At quality 50 every odd one is an exact half of a step, which a cosine transform misses."""
    greys = np.arange(256, dtype=np.uint8)[:, None, None, None].repeat(16, 1).repeat(16, 2)
    greys = greys.repeat(3, 3)
    x = torch.from_numpy(greys).to(dtype).movedim(-1, 1) / 255
    want = torch.stack([pillow(one, 50, 0) for one in greys])
    assert float((255 * JPEG(Space((3, 16, 16)), 50)(x) - want).abs().max()) <= 1.01


def test_quantisation_is_the_nearest_level() -> None:
    A, levels = Quantisation(Space((1, 50)), 6, -1.0, 1.5), torch.linspace(-1, 1.5, 6, dtype=F64)
    x = 2 * noise(1, 50)
    want = levels[(x[0, :, None] - levels).abs().argmin(1)]
    assert relative(A(x)[0], want) < 1e-14
    assert relative(Quantisation(A.domain, 7, -1.0, 1.5)(x)[0], want) > 0.05


def test_counts_are_poisson_of_their_mean() -> None:
    A = Counts(Space((1, 100, 200)), 3.0, 0.5)
    mean = A(torch.full((1, 100, 200), 2.0, dtype=F64))
    assert bool((mean == 6.5).all())
    drawn = draw_counts(mean, torch.Generator().manual_seed(0)).flatten().numpy()
    seen = np.bincount(drawn.astype(int), minlength=30)
    wanted = poisson.pmf(np.arange(len(seen)), 6.5)
    assert chisquare(seen[1:14], 20000 * wanted[1:14] * seen[1:14].sum() / (
        20000 * wanted[1:14].sum())).pvalue > 1e-3
    assert chisquare(seen[1:14], poisson.pmf(np.arange(1, 14), 6.0) / poisson.pmf(
        np.arange(1, 14), 6.0).sum() * seen[1:14].sum()).pvalue < 1e-6
    assert torch.equal(draw_counts(mean, torch.Generator().manual_seed(0)).flatten(),
                       torch.from_numpy(drawn))


REFUSED: dict[str, Callable[[], object]] = {
    "images of one channel": lambda: PhaseRetrieval(Space((2, 4, 4))),
    "whole oversampling >= 1, got 0": lambda: PhaseRetrieval(REAL, oversampling=0),
    "want masks .patterns, .*got .3, 5, 6.": lambda: PhaseRetrieval(REAL, noise(3, 5, 6)),
    "finite masks": lambda: PhaseRetrieval(REAL, noise(3, 6, 5) / 0),
    "want patterns and sizes >= 1": lambda: random_phases(0, (4, 4)),
    "Clipping: want finite low < high, got 1.0 and 1.0": lambda: Clipping(REAL, low=1.0),
    "finite gain > 0, got -1": lambda: Clipping(REAL, gain=-1.0),
    "StraightThroughQuantisation: want 2 levels or more, got 1":
        lambda: StraightThroughQuantisation(REAL, 1),
    "want finite kernel weights": lambda: NonlinearBlur(torch.full((3, 3), math.nan), REAL),
    "Counts: want a finite gain > 0, got 0": lambda: Counts(REAL, 0.0),
    "finite background >= 0, got -2": lambda: Counts(REAL, 1.0, torch.full((6, 5), -2.0)),
    "gain .4,. does not fit": lambda: Counts(REAL, torch.ones(4)),
    "finite means >= 0, got -1.0 and 0 others of 2": lambda: draw_counts(torch.tensor([2.0, -1.0])),
    "images .1 or 3, height, width., got .2, 8, 8.": lambda: JPEG(Space((2, 8, 8)), 50),
    "whole quality from 1 to 100, got 0": lambda: JPEG(Space((3, 8, 8)), 0),
    "subsampling '4:2:0' or '4:4:4'": lambda: JPEG(Space((3, 8, 8)), 50, "4:2:2"),
}


@pytest.mark.parametrize("message", REFUSED)
def test_refuses(message: str) -> None:
    with pytest.raises(ValueError, match=message):
        REFUSED[message]()


@pytest.mark.parametrize("build", [
    lambda: Clipping(COMPLEX), lambda: Quantisation(COMPLEX, 4), lambda: Counts(COMPLEX, 1.0),
    lambda: JPEG(Space((3, 8, 8), torch.complex64), 50),
    lambda: NonlinearBlur(torch.ones(1, 1), COMPLEX)])
def test_refuses_complex_images(build: Callable[[], Operator]) -> None:
    with pytest.raises(TypeError, match="want a real space, got torch"):
        build()
