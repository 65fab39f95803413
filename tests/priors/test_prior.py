"""What every prior does around its denoiser: leading dimensions, chunks, units, complex packing."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from recon.priors import Gaussian, Prior

Denoise = Callable[[Tensor, Tensor], Tensor]


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def relative(got: Tensor, want: Tensor) -> float:
    assert got.shape == want.shape
    assert got.dtype == want.dtype
    return float((got - want).abs().max() / want.abs().max())


class Saturating(Prior):
    """Nonlinear, so that wrong units show; mixes channels, so that wrong packing shows."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"channels": 2, "is_complex": False, **settings})
        self.calls: list[int] = []

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        self.calls.append(len(x))
        mixed = x + 0.3 * x.flip(1) + 0.1
        return mixed / (1 + mixed.abs() + sigma.view(-1, *(1,) * self.item_ndim))


def saturated(x: Tensor, sigma: float) -> Tensor:
    """``Saturating`` of one item, written out."""
    mixed = x + 0.3 * x.flip(0) + 0.1
    return mixed / (1 + mixed.abs() + sigma)


def check_items(denoise: Denoise, leading: tuple[int, ...], sigma: Tensor) -> None:
    """Fails unless every item comes out as it does alone, at its own noise level."""
    x = noise(*leading, 2, 5, 6)
    got = denoise(x, sigma)
    assert got.shape == x.shape
    levels = sigma.expand(leading).flatten().tolist()
    for one, level, out in zip(x.reshape(-1, 2, 5, 6), levels, got.reshape(-1, 2, 5, 6),
                               strict=True):
        assert relative(out, saturated(one, level)) < 1e-14


@pytest.mark.parametrize("max_batch", [None, 1, 4])
@pytest.mark.parametrize(("leading", "sigma"), [
    ((), ()), ((1,), ()), ((3,), ()), ((3,), (3,)), ((3,), (1,)), ((2, 3), ()), ((2, 3), (3,)),
    ((2, 3), (2, 1)), ((2, 3), (2, 3)), ((2, 1, 3), (2, 1, 1)), ((0,), ()), ((2, 0), ()),
])
def test_leading_dimensions(leading: tuple[int, ...], sigma: tuple[int, ...],
                            max_batch: int | None) -> None:
    prior = Saturating(max_batch=max_batch)
    check_items(prior, leading, noise(*sigma, seed=1).abs())


@pytest.mark.parametrize("wrong", [
    lambda x, sigma: Saturating()(x, sigma.mean()),
    lambda x, sigma: Saturating()(x, sigma.flip(0)),
    lambda x, sigma: Saturating()(x.flip(0), sigma),
    lambda x, sigma: Saturating()(x, sigma) + 1e-9 * x.mean(),
])
def test_items_that_see_each_other_are_told(wrong: Denoise) -> None:
    with pytest.raises(AssertionError):
        check_items(wrong, (3,), torch.tensor([0.1, 0.5, 2.0], dtype=torch.float64))


def test_a_python_number_is_a_level() -> None:
    x = noise(2, 3, 2, 5, 6)
    prior = Saturating()
    assert torch.equal(prior(x, 0.7), prior(x, torch.tensor(0.7, dtype=torch.float64)))


def test_other_numbers_of_image_dimensions() -> None:
    for shape in [(7,), (3, 4, 5)]:
        x = noise(2, 3, 2, *shape)
        prior = Saturating(spatial_ndim=len(shape))
        assert relative(prior(x, 0.5)[1, 2], saturated(x[1, 2], 0.5)) < 1e-14


def test_chunks_are_the_whole() -> None:
    x, sigma = noise(3, 3, 2, 5, 6), noise(3, seed=1).abs()
    whole = Saturating()
    want = whole(x, sigma)
    assert whole.calls == [9]
    for size, calls in [(4, [4, 4, 1]), (9, [9]), (100, [9]), (1, [1] * 9)]:
        prior = Saturating(max_batch=size)
        assert torch.equal(prior(x, sigma), want)
        assert prior.calls == calls


def test_max_batch_reaches_the_network_through_wrappers() -> None:
    inner = Saturating(max_batch=4)
    outer = inner.rescaled(2.0).as_complex("parts")
    assert outer.max_batch == 4
    outer.max_batch = 3
    outer(torch.complex(noise(2, 2, 5, 6), noise(2, 2, 5, 6, seed=1)), 0.5)
    assert inner.calls == [3, 1]
    with pytest.raises(ValueError, match="max_batch wants at least 1, or None"):
        outer.max_batch = 0


def check_rescaled(original: Prior, rescaled: Denoise, scale: Tensor, shift: Tensor) -> None:
    """Fails unless ``D'(x; s) = c D((x - b) / c; s / c) + b`` for each item's own c and b."""
    x, sigma = noise(3, 4, 2, 5, 6), noise(4, seed=1).abs()
    if original.is_complex:
        x = torch.complex(x, noise(3, 4, 2, 5, 6, seed=2))
    got = rescaled(x, sigma)
    scales, shifts = scale.expand(4), shift.expand(4)
    for sample in range(3):
        for i in range(4):
            c, b = scales[i], shifts[i]
            want = c * original((x[sample, i] - b) / c, float(sigma[i] / c)) + b
            assert relative(got[sample, i], want) < 1e-13


ONE = torch.tensor(3.7, dtype=torch.float64)
EACH = torch.tensor([0.2, 1.0, 5.0, 30.0], dtype=torch.float64)
SHIFTS = torch.tensor([0.0, 2.0, -1.0, 0.3], dtype=torch.float64)


@pytest.mark.parametrize("scale", [ONE, EACH])
@pytest.mark.parametrize("shift", [torch.zeros((), dtype=torch.float64), -ONE, SHIFTS])
@pytest.mark.parametrize("is_complex", [False, True])
def test_rescaled(scale: Tensor, shift: Tensor, is_complex: bool) -> None:
    prior = Saturating(is_complex=is_complex)
    check_rescaled(prior, prior.rescaled(scale, shift), scale, shift)
    if is_complex:
        shift = shift * (1 - 2j)
        check_rescaled(prior, prior.rescaled(scale, shift), scale, shift)


@pytest.mark.parametrize("wrong", [
    lambda D, x, s, c, b: D((x - b) / c, s) * c + b,  # level in old units
    lambda D, x, s, c, b: D((x - b) / c, s / c) * c,  # shift not put back
    lambda D, x, s, c, b: D(x / c, s / c) * c + b,  # shift not taken off
    lambda D, x, s, c, b: D((x - b) / c, s / (c * 0 + c.mean())) * c + b,  # one scale for all
    lambda D, x, s, c, b: D((x - b) * c, s * c) / c + b,  # the other way round
])
def test_wrong_units_are_told(wrong: Callable[..., Tensor]) -> None:
    prior = Saturating()

    def shaped(x: Tensor, sigma: Tensor) -> Tensor:
        return prior(x, sigma.view(4))

    def rescaled(x: Tensor, sigma: Tensor, formula: Callable[..., Tensor] = wrong) -> Tensor:
        return formula(shaped, x, *(t.view(4, 1, 1, 1) for t in (sigma, EACH, SHIFTS)))

    def right(x: Tensor, sigma: Tensor) -> Tensor:
        return rescaled(x, sigma, lambda D, x, s, c, b: D((x - b) / c, s / c) * c + b)

    check_rescaled(prior, right, EACH, SHIFTS)
    with pytest.raises(AssertionError):
        check_rescaled(prior, rescaled, EACH, SHIFTS)


def test_python_numbers_are_not_rounded_to_single_precision() -> None:
    prior = Saturating()
    check_rescaled(prior, prior.rescaled(0.1, 0.3), ONE * 0 + 0.1, ONE * 0 + 0.3)
    kept = prior.rescaled(0.1).scale
    assert isinstance(kept, Tensor)
    assert float(kept) == 0.1


def test_rescaling_again_multiplies() -> None:
    prior, x = Saturating(), noise(4, 2, 5, 6)
    twice = prior.rescaled(EACH, SHIFTS).rescaled(2.0, 1.0)
    assert relative(twice(x, 0.5), prior.rescaled(2 * EACH, 2 * SHIFTS + 1)(x, 0.5)) < 1e-13
    assert torch.equal(torch.as_tensor(twice.scale), 2 * EACH)


@pytest.mark.parametrize("c", [1e-6, 1e-3, 1e3, 1e6])
def test_units_cancel_in_single_precision(c: float) -> None:
    x = noise(2, 2, 5, 6, dtype=torch.float32)
    prior = Saturating()
    got = prior.rescaled(c)(c * x, c * 0.3) / c
    assert got.dtype == torch.float32
    assert relative(got, prior(x, 0.3)) < 1e-6


def test_scale_survives_every_wrapper() -> None:
    prior = Saturating()
    assert prior.scale == 1
    for how in ("channels", "parts"):
        assert torch.equal(torch.as_tensor(prior.rescaled(EACH).as_complex(how).scale), EACH)
        assert torch.equal(torch.as_tensor(prior.as_complex(how).rescaled(EACH).scale), EACH)


def check_complex(how: str, packed: Denoise) -> None:
    """Fails unless real and imaginary parts meet the real prior as ``how`` says."""
    x = torch.complex(noise(4, 1 if how == "channels" else 2, 5, 6), noise(4, 1, 5, 6, seed=1))
    sigma, prior = noise(4, seed=2).abs(), Saturating()
    got = packed(x, sigma)
    if how == "channels":
        out = prior(torch.cat([x.real, x.imag], 1), sigma)
        want = out[:, :1] + 1j * out[:, 1:]
    else:
        want = prior(x.real.clone(), sigma) + 1j * prior(x.imag.clone(), sigma)
    assert relative(got, want) < 1e-14


def test_as_complex() -> None:
    prior = Saturating()
    for how, channels in [("channels", 1), ("parts", 2)]:
        packed = prior.as_complex(how)  # type: ignore[arg-type]
        assert (packed.channels, packed.is_complex) == (channels, True)
        check_complex(how, packed)
        check_complex(how, prior.rescaled(1.0).as_complex(how))  # type: ignore[arg-type]


@pytest.mark.parametrize("how", ["channels", "parts"])
@pytest.mark.parametrize("wrong", [
    lambda D, x, s: D(x.conj().resolve_conj(), s),
    lambda D, x, s: 1j * D(-1j * x, s),
    lambda D, x, s: D(x, s).real + 0j,
])
def test_wrong_packing_is_told(how: str, wrong: Callable[..., Tensor]) -> None:
    right = Saturating().as_complex(how)  # type: ignore[arg-type]
    with pytest.raises(AssertionError):
        check_complex(how, lambda x, sigma: wrong(right, x, sigma))


def test_per_item_scale_inside_complex_packing() -> None:
    x = torch.complex(noise(3, 4, 2, 5, 6), noise(3, 4, 2, 5, 6, seed=1))
    prior = Saturating()
    inside, outside = (prior.rescaled(EACH).as_complex("parts"),
                       prior.as_complex("parts").rescaled(EACH))
    assert relative(inside(x, 0.5), outside(x, 0.5)) < 1e-14


def test_spaces_follow_the_packing() -> None:
    real = Gaussian(noise(2, 3, 4), variance=1.0)
    assert real.space is not None
    channels, parts = real.as_complex("channels").space, real.as_complex("parts").space
    assert channels is not None
    assert parts is not None
    assert (channels.shape, channels.dtype) == ((1, 3, 4), torch.complex128)
    assert (parts.shape, parts.dtype) == ((2, 3, 4), torch.complex128)
    assert real.rescaled(2.0).space == real.space


def test_double_keeps_imaginary_parts() -> None:
    mean = torch.complex(noise(1, 3, 4), noise(1, 3, 4, seed=1)).to(torch.complex64)
    prior = Gaussian(mean, variance=1.0).rescaled(2.0, 1.0 + 2.0j)
    for moved in (copy.deepcopy(prior).to(torch.float64), copy.deepcopy(prior).double()):
        assert isinstance(moved.of, Gaussian)
        assert torch.equal(moved.of.mean, mean.to(torch.complex128))
        assert complex(moved.get_buffer("shift")) == 1 + 2j
    with (pytest.warns(UserWarning, match="Complex modules"),
          pytest.raises(TypeError, match=r"want a real dtype, got torch\.complex128")):
        Saturating().rescaled(2.0).to(torch.complex128)


REAL = noise(3, 2, 5, 6)


@pytest.mark.parametrize(("error", "call", "message"), [
    (ValueError, lambda: Saturating(max_batch=0), "max_batch wants at least 1, or None"),
    (ValueError, lambda: Saturating()(REAL[:, :1], 1.0), "wants .*batch, 2, 2 image.*3, 1, 5"),
    (ValueError, lambda: Saturating()(REAL[0, 0], 1.0), "2 image sizes.*got .5, 6.*2 channel"),
    (ValueError, lambda: Saturating()(REAL, noise(2)), "sigma wants one number.*of .3,., got .2,."),
    (ValueError, lambda: Saturating()(REAL[0], noise(1)), "sigma wants one number.*got .1,."),
    (ValueError, lambda: Saturating().rescaled(EACH)(REAL, 1.0), "scale wants .* got .4,."),
    (ValueError, lambda: Saturating().rescaled(1.0, EACH)(REAL[0], 1.0), "shift wants .* got .4,."),
    (ValueError, lambda: Saturating().rescaled(0.0), "finite scale > 0, got 0.0"),
    (ValueError, lambda: Saturating().rescaled(-EACH), "finite scale > 0, got .-0.2"),
    (ValueError, lambda: Saturating().rescaled(float("nan")), "finite scale > 0, got nan"),
    (ValueError, lambda: Saturating().rescaled(EACH * 1j), "finite scale > 0, got .*j"),
    (ValueError, lambda: Saturating().rescaled(1.0, float("inf")), "finite shift, got inf"),
    (TypeError, lambda: Saturating().rescaled(1.0, 2j), "wants a real shift, got complex"),
    (TypeError, lambda: Saturating()(REAL + 0j, 1.0), "of real images, got complex.*as_complex"),
    (TypeError, lambda: Saturating()(REAL.long(), 1.0), "floating images, got torch.int64"),
    (TypeError, lambda: Saturating(is_complex=True)(REAL, 1.0), "of complex images, got real ones"),
    (TypeError, lambda: Saturating(is_complex=True).as_complex("parts"), "is complex already"),
    (ValueError, lambda: Saturating(channels=3).as_complex("channels"), "even number.*got 3"),
    (ValueError, lambda: Saturating().as_complex("polar"),  # type: ignore[arg-type]
     'wants "channels" or "parts", got .polar.'),
    (ValueError, lambda: Gaussian(REAL[0], variance=1.0)(REAL[..., :5], 1.0), "Gaussian: want .*6"),
    (TypeError, lambda: Prior(channels=2, is_complex=False)(REAL, 1.0), "Prior has no denoise"),
])
def test_refusals(error: type[Exception], call: Callable[[], object], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
