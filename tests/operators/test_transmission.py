"""Counts to line integrals: the noise against its closed form, whitening, flat fields."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from recon.operators import Identity, ParallelBeamCT, Space, Weighting, check, whitened
from recon.operators.ct import draw_transmission, flat_field, log_transform, readings_per_photon

Method = Callable[[Tensor, float, float], tuple[Tensor, Tensor]]
DRAWS = 20_000


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def check_noise(method: Method) -> None:
    """Mean and spread of many rays, against the delta method and its next order."""
    for photons, through, std in ((5e4, 0.02, 0.0), (5e4, 0.02, 40.0), (2e3, 0.9, 25.0)):
        line = -math.log(through)
        y, noise_std = method(draw_transmission(
            torch.full((DRAWS,), line, dtype=torch.float64), photons, std, seeded()), photons, std)
        mean = photons * through
        variance = (mean + std**2) / mean**2
        # the spread of a variance from so many draws is sqrt(2 / DRAWS); 1.5 variance: next order
        assert float(y.var()) == pytest.approx(variance, rel=4 * math.sqrt(2 / DRAWS)
                                               + 4 * variance)
        bias = float(y.mean()) - line - variance / 2
        assert abs(bias) < 4 * math.sqrt(variance / DRAWS) + 2 * variance**2
        assert float((noise_std**2).mean()) == pytest.approx(variance, rel=0.02 + 6 * variance)


def test_the_noise_of_the_logarithm() -> None:
    check_noise(log_transform)

    def faulty(name: str) -> Method:
        def method(counts: Tensor, photons: float, std: float) -> tuple[Tensor, Tensor]:
            y, noise_std = log_transform(counts, photons, std)
            return {
                "no electronic noise": (y, counts.rsqrt()),
                "variance": (y, noise_std**2),
                "of the counts": (y, (counts + std**2).sqrt()),
                "not squared": (y, (counts + std).sqrt() / counts),
                "sign": (-y, noise_std),
                "shifted": (y + 1e-2, noise_std),
            }[name]

        return method

    faults = [faulty(name) for name in ("no electronic noise", "variance", "of the counts",
                                        "not squared", "sign", "shifted")]
    for fault in faults:
        with pytest.raises(AssertionError):
            check_noise(fault)


def test_draws_without_electronic_noise_are_whole_and_repeat() -> None:
    line = torch.rand(50, generator=seeded())
    N = draw_transmission(line, 1000.0, generator=seeded(3))
    assert torch.equal(N, N.round())
    assert torch.equal(N, draw_transmission(line, 1000.0, generator=seeded(3)))
    assert float(draw_transmission(torch.zeros(DRAWS), 9.0, 30.0, seeded()).std()) == pytest.approx(
        math.sqrt(9 + 900), rel=0.03)
    each = draw_transmission(torch.zeros(2, DRAWS), torch.tensor([[100.0], [400.0]]),
                             generator=seeded())
    assert torch.allclose(each.mean(1), torch.tensor([100.0, 400.0]), rtol=0.01)


def test_starved_rays_stay_finite_and_count_little() -> None:
    y, noise_std = log_transform(torch.tensor([-3.0, 0.0, 0.4, 4.0]), 100.0, 2.0)
    assert torch.allclose(y, torch.tensor([100.0, 100.0, 100.0, 25.0]).log())
    assert torch.allclose(noise_std, torch.tensor([5.0, 5.0, 5.0, 8.0 / 16]).sqrt()
                          * torch.tensor([1.0, 1, 1, 1]))
    assert torch.allclose(log_transform(torch.zeros(1), 4096.0, floor=0.1).y,
                          torch.tensor(40960.0).log())  # as LoDoPaB has it


def check_kinds(method: Callable[..., tuple[Tensor, Tensor]]) -> None:
    """Whatever type a detector delivers its counts in, they are the same counts."""
    for kind in (torch.uint8, torch.int16, torch.uint16, torch.int32, torch.int64, torch.float16,
                 torch.bfloat16, torch.float32):
        counts = torch.tensor([0, 1, 50, 100, 250 if kind == torch.uint8 else 256]).to(kind)
        for photons in (1234.7, 70_000.0, torch.tensor(70_000)):
            found, want = (method(n, photons, 2.5) for n in (counts, counts.double()))
            for got, right in zip(found, want, strict=True):
                assert got.dtype == (kind if kind.is_floating_point else torch.float32)
                rounding = max(2e-7, torch.finfo(got.dtype).eps)
                assert torch.allclose(got.double(), right, rtol=rounding)


def test_counts_of_any_type_are_the_same_counts() -> None:
    check_kinds(log_transform)

    def photons_as_counts(counts: Tensor, photons: Tensor | float, std: float) -> Any:
        return log_transform(counts, torch.as_tensor(photons).to(counts.dtype).clamp(min=1), std)

    def in_their_own(counts: Tensor, photons: Tensor | float, std: float) -> Any:
        y, noise_std = log_transform(counts, photons, std)
        return y.to(counts.dtype), noise_std.to(counts.dtype)

    for fault in (photons_as_counts, in_their_own):
        with pytest.raises(AssertionError):
            check_kinds(fault)
    for kind in (torch.int64, torch.float16):
        line = torch.zeros(DRAWS, dtype=kind)
        drawn = draw_transmission(line, 70_000.7, generator=seeded())
        assert torch.equal(drawn, draw_transmission(line.float(), 70_000.7, generator=seeded()))


def check_white(whiten: Callable[..., Any]) -> None:
    """Residuals of the truth have one spread, in every item, and the data keep their size."""
    A = ParallelBeamCT(12, torch.linspace(0, 3, 30), method="gather")
    x = 0.2 * torch.rand(2, 1, 12, 12, generator=seeded())
    clean = A(x)
    std = 0.02 * torch.tensor([1.0, 3.0]).view(2, 1, 1, 1) * (1 + clean)
    draws = clean + std * torch.randn(200, *clean.shape, generator=seeded(1))
    y, B, level = whiten(draws, A, std)
    residual = (y - B(x)).square().mean(0).sqrt()  # of each ray
    assert torch.allclose(residual, level.view(2, 1, 1, 1).expand_as(residual), rtol=0.25)
    spread = (residual / level.view(2, 1, 1, 1)).flatten(1).mean(1)
    assert torch.allclose(spread, torch.ones(2), rtol=5e-3)
    assert torch.allclose((level / std.flatten(1).square().reciprocal().mean(1).rsqrt()),
                          torch.ones(2), rtol=1e-5)
    assert float(B(x).norm() / clean.norm()) == pytest.approx(1, abs=0.4)


def test_whitened_data_have_one_noise() -> None:
    check_white(whitened)

    def wrong(y: Tensor, A: Any, std: Tensor) -> Any:
        return whitened(y, A, std**2)

    def shared(y: Tensor, A: Any, std: Tensor) -> Any:
        found = whitened(y, A, std)
        return found._replace(noise_std=found.noise_std.mean().expand(2))

    def only_data(y: Tensor, A: Any, std: Tensor) -> Any:
        return whitened(y, A, std)._replace(operator=A)

    for fault in (wrong, shared, only_data):
        with pytest.raises(AssertionError):
            check_white(fault)


def test_whitened_least_squares_is_the_weighted_one() -> None:
    A = ParallelBeamCT(4, torch.linspace(0, 3, 9), method="gather", dtype=torch.float64)
    y = torch.randn(A.range.shape, generator=seeded(), dtype=torch.float64)
    std = 0.5 + torch.rand(A.range.shape, generator=seeded(1), dtype=torch.float64)
    std[0, 2] = math.inf  # a view that was not measured
    y[0, 2] = math.nan
    case = whitened(y, A, std)
    x = case.operator.solve_cg(case.operator.adjoint(case.y), 0.0, max_iter=200, rtol=1e-13).x
    M = A(torch.eye(16, dtype=torch.float64).view(16, 1, 4, 4)).flatten(1).T
    W = torch.diag(std.flatten() ** -2)
    want = torch.linalg.solve(M.T @ W @ M, M.T @ W @ y.nan_to_num().flatten())
    assert torch.allclose(x.flatten(), want, rtol=1e-6)


def test_weighting_keeps_the_contract() -> None:
    space = Space((1, 5, 4), torch.complex64)
    for weights in (torch.rand(5, 4, generator=seeded()), torch.tensor([1.0, 0.0, -2.0, 3.0])):
        check(Weighting(weights, space)).raise_if_failed()
    check(Weighting(torch.rand(3, 1, 5, 4, generator=seeded()), space),
          batches=((3,), (2, 3))).raise_if_failed()


def check_flat(correct: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    """Readings of a detector with gain, offset and an uneven beam."""
    through = torch.rand(6, 3, 8, generator=seeded())
    offset, beam = 100 + torch.rand(3, 8), 3000 * (1 + torch.rand(3, 8, generator=seeded(1)))
    flat = torch.stack([offset + 0.9 * beam, offset + 1.1 * beam])
    found = correct(offset + beam * through, flat, offset.expand(4, 3, 8))
    assert torch.allclose(found, through, atol=1e-6)


def test_flat_field() -> None:
    check_flat(flat_field)
    for fault in (lambda r, f, d: flat_field(r, f, 0 * d), lambda r, f, d: flat_field(r, f[0], d),
                  lambda r, f, d: flat_field(r, f.flip(-1), d)):
        with pytest.raises(AssertionError):
            check_flat(fault)
    whole = flat_field(torch.full((2, 4), 60, dtype=torch.int16), torch.full((4,), 110.0), 10.0)
    assert torch.equal(whole, torch.full((2, 4), 0.5))


def test_the_gain_is_found_from_flat_frames() -> None:
    beam = 5000 * (1 + torch.rand(2000, generator=seeded()))
    for frames in (3, 10):
        counts = torch.poisson(beam.expand(frames, -1), generator=seeded(1))
        assert readings_per_photon(0.6 * counts + 100, 100.0) == pytest.approx(0.6, rel=0.03)


def ones(*shape: int) -> Tensor:
    return torch.ones(shape)


REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "no photons": (lambda: log_transform(ones(3), 0.0), "photons above 0, got 0.0"),
    "no number": (lambda: draw_transmission(ones(3), math.nan), "photons above 0, got nan"),
    "electronic": (lambda: log_transform(ones(3), 9.0, -1.0), "electronic_std >= 0, got -1.0"),
    "floor": (lambda: log_transform(ones(3), 9.0, floor=0.0), "floor above 0, got 0.0"),
    "counts": (lambda: log_transform(ones(2, 3) / 0, 9.0), r"inf at \(0, 0\) and 5 others"),
    "raw": (lambda: flat_field(ones(2, 3) * math.nan, ones(3)), r"nan at \(0, 0\) and 5 others"),
    "flat": (lambda: flat_field(ones(2, 3), ones(2, 4)), r"flat as \(frames, 3\) .* got \(2, 4\)"),
    "dark": (lambda: flat_field(ones(2, 3), ones(3), ones(5, 2)), r"want dark .* got \(5, 2\)"),
    "dead": (lambda: flat_field(ones(2, 3), torch.tensor([1.0, 0.0, 2.0]), 0.5),
             r"no brighter than the dark one at 1 of 3 bins, the first \(1,\)"),
    "one frame": (lambda: readings_per_photon(ones(1, 3)), r"two flat frames .* got \(1, 3\)"),
    "equal frames": (lambda: readings_per_photon(ones(4, 3)), "differ from one another"),
    "std per item": (lambda: whitened(ones(2, 1, 3, 4), Identity(Space((1, 3, 4))), ones(2)),
                     r"for each number of y, \(2, 1, 3, 4\), got \(2,\)"),
    "std zero": (lambda: whitened(ones(1, 3, 4), Identity(Space((1, 3, 4))), 0 * ones(1, 3, 4)),
                 "noise_std > 0 everywhere, got 0.0 at 12 numbers"),
    "std shape": (lambda: whitened(ones(1, 3, 4), Identity(Space((1, 3, 4))), ones(1, 3, 5)),
                  r"noise_std \(1, 3, 5\) does not fit y, \(1, 3, 4\)"),
    "nothing": (lambda: whitened(ones(1, 3, 4), Identity(Space((1, 3, 4))), ones(1, 3, 4) / 0),
                "some measurement with finite noise_std"),
    "weights": (lambda: Weighting(ones(4, 3), Space((1, 3, 4))), r"\(4, 3\) do not fit \(1, 3, 4"),
    "bad weights": (lambda: Weighting(ones(4) / 0, Space((1, 3, 4))), "finite weights, got NaN"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name: str) -> None:
    call, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        call()
