"""Candidates, their entries and moments, and the choice among them."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from recon.acquisition import (
    Belief,
    Candidates,
    Fixed,
    Random,
    candidates,
    choose,
    columns,
    moments,
    pixels,
    views,
)
from recon.noise import Noise
from recon.operators import (
    CartesianMRI,
    ConeBeamCT,
    Counts,
    FanBeamCT,
    Identity,
    LinearOperator,
    Operator,
    ParallelBeamCT,
    Space,
    stack,
)
from recon.operators.mri.fourier import fft2c, ifft2c
from recon.simulate import coil_maps

F64, C128 = torch.float64, torch.complex128
NONE = torch.empty(0, dtype=torch.int64)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def believed(x0: Tensor, std: Tensor | float = 0.1, operator: LinearOperator | None = None,
             labels: Tensor | None = None, generator: torch.Generator | None = None,
             unresolved: float = 0.0) -> Belief:
    """What particles ``(n, *batch, 1, 1, entries)`` say of themselves, or of ``operator``."""
    A = operator or Identity(Space(tuple(x0.shape[-3:]), x0.dtype))
    return Belief(x0, A, Candidates(pixels(A) if labels is None else labels, A),
                  noise_std=torch.as_tensor(std, dtype=x0.dtype.to_real()),
                  unresolved=torch.tensor(unresolved), noise=Noise(generator, 1, 3))


@pytest.mark.parametrize(("window", "count", "released"), [
    ((0, 800), 250, 267), ((0, 800), 500, 800), ((50, 500), 32, 33), ((50, 2500), 31, 32),
    ((0, 800), 24, 25)])
def test_budget_is_exact(window: tuple[int, int], count: int, released: int) -> None:
    """A6: the released rule, every ``(b - a) // n`` steps, takes up to 60 % more than asked for."""
    a, b = window
    interval = max(1, (b - a) // count)
    taken = sum(step % interval == 0 for step in range(a, b))
    assert abs(taken - released) <= 1  # its own count of the fourth leaves the initial line out
    assert taken >= count
    found = moments(count, window)
    assert len(found) == len(set(found)) == count
    assert a == found[0] <= found[-1] < b
    gaps = torch.tensor(found).diff()
    assert int(gaps.max() - gaps.min()) <= 1


def test_more_acquisitions_than_steps() -> None:
    assert moments(7, (2, 5)) == [2, 2, 2, 3, 3, 4, 4]
    assert moments(0, (2, 5)) == []


def test_choice() -> None:
    """A7: never the same twice, whatever the sign of the scores; ties to the lowest index."""
    belief, taken = believed(torch.randn(4, 2, 1, 1, 5, generator=seeded())), torch.zeros(2, 5)
    for level in (0.0, -3.0, 2.0):
        chosen, scores = choose(lambda b, c, v=level: torch.full((2, 5), v),  # noqa: ARG005
                                belief, taken.bool(), 5)
        assert chosen.tolist() == [[0, 1, 2, 3, 4]] * 2
        assert bool((scores == level).all())

    def by_multiplication(scores: Tensor, done: Tensor) -> int:  # the released mask
        return int((scores * ~done).argmax())

    done = torch.tensor([False, True, False])
    negative = torch.tensor([-2.0, -1.0, -3.0])
    assert by_multiplication(negative, done) == 1  # measured already
    few = believed(torch.randn(4, 1, 1, 3, generator=seeded()))
    assert choose(lambda b, c: negative, few, done, 1)[0].tolist() == [0]  # noqa: ARG005
    with pytest.raises(ValueError, match="leaves no candidate"):
        choose(Fixed([1]), few, done, 1)
    with pytest.raises(ValueError, match="or scores NaN"):
        choose(lambda b, c: 0 * negative / 0, few, done, 1)  # noqa: ARG005
    with pytest.raises(ValueError, match=r"scores \(3,\), one per candidate, got \(2,\)"):
        choose(lambda b, c: negative[:2], few, done, 1)  # noqa: ARG005


def test_centre_of_k_space() -> None:
    """A9: the transform is unitary, DC lies in column n // 2; (the released start is one off)."""
    for height, width in ((6, 8), (5, 7)):
        A = CartesianMRI((height, width))
        x = torch.randn(1, height, width, generator=seeded(), dtype=C128)
        assert torch.allclose(ifft2c(fft2c(x)), x)
        assert float(fft2c(x).abs().square().sum() / x.abs().square().sum()) == pytest.approx(1)
        flat = A(torch.ones(1, height, width, dtype=torch.complex64)).abs().square()
        power = Candidates(columns(A), A).sums(flat)
        assert int(power.argmax()) == width // 2
        assert float(power[width // 2 - 1]) < 1e-6 * float(power[width // 2])


def test_random_and_fixed() -> None:
    x, A = torch.zeros(3, 2, 1, 1, 50), Identity(Space((1, 1, 50)))
    labelled = Candidates(pixels(A), A)

    def drawn(sources: list[torch.Generator], items: slice) -> Tensor:
        belief = Belief(x[:, items], A, labelled, noise_std=torch.tensor(0.1),
                        unresolved=torch.tensor(0.0), noise=Noise(sources, 1, 3))
        return Random()(belief, NONE)

    both = drawn([seeded(1), seeded(2)], slice(0, 2))
    assert torch.equal(both[1:], drawn([seeded(2)], slice(1, 2)))
    picks = torch.stack([Random()(believed(x[:, 0], generator=seeded(s)), NONE).argmax()
                         for s in range(2000)])
    share = torch.bincount(picks, minlength=50) / 2000
    assert float(share.std()) == pytest.approx(math.sqrt(0.02 * 0.98 / 2000), rel=0.3)
    order = [4, 0, 9]
    taken = torch.zeros(2, 50, dtype=torch.bool)
    assert choose(Fixed(order), believed(x), taken, 3)[0].tolist() == [order] * 2
    for wrong in ([1, 1], [50], [-1]):
        with pytest.raises(ValueError, match="Fixed wants different candidates of 0 to 49"):
            Fixed(wrong)(believed(x), NONE)


def test_labels() -> None:
    mri = CartesianMRI((4, 6), maps=coil_maps(3, 4, 6))
    assert columns(mri).tolist() == list(range(6))
    assert pixels(mri).shape == (4, 6)
    ct = ParallelBeamCT(8, [0.0, 0.5, 1.0], detectors=12)
    assert views(ct).flatten().tolist() == [0, 1, 2]
    found = Candidates(views(ct), ct).mask(torch.tensor([[2], [0]]))
    assert found.shape == (2, 1, 3, 12)
    assert found.sum((-3, -1)).tolist() == [[0, 0, 12], [12, 0, 0]]
    held = Candidates(torch.tensor([0, 1, -1, 1, 2, 2]), mri)
    assert held.mask(torch.tensor([0, 1, 2])).sum((0, 1)).tolist() == [12, 12, 0, 12, 12, 12]
    assert held.count == 3
    assert not bool(held.mask(NONE).any())
    assert held.sums(torch.ones(2, 3, 4, 6)).tolist() == [[12, 24, 24]] * 2
    with pytest.raises(ValueError, match="columns wants the operator of all columns"):
        columns(CartesianMRI((4, 6), torch.tensor([1, 1, 0, 1, 1, 1])))
    with pytest.raises(TypeError, match=r"whole numbers, got torch\.float32"):
        Candidates(torch.zeros(6), mri)
    with pytest.raises(TypeError, match="whole numbers, got list"):
        Candidates([0, 1], mri)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"broadcast to the measurement \(3, 4, 6\), got \(5,\)"):
        Candidates(torch.arange(5), mri)
    for wrong in ([0, 1, 3, 3, 3, 3], [-1] * 6, [0, 0, -2, 0, 0, 0]):
        with pytest.raises(ValueError, match="without gaps"):
            Candidates(torch.tensor(wrong), mri)


ANGLES = torch.arange(6) * math.pi / 3
PARALLEL = ParallelBeamCT(8, ANGLES, detectors=13)
TOMOGRAPHS: dict[str, Operator] = {
    "parallel": PARALLEL,
    "fan": FanBeamCT(8, ANGLES, source_distance=30.0, detectors=17),
    "cone": ConeBeamCT((4, 8, 8), ANGLES, (11, 15), 20.0),
    "helix": ConeBeamCT((4, 8, 8), ANGLES, (11, 15), 20.0, pitch=2.0),
    "two energies": stack(PARALLEL, 2 * PARALLEL),
    "counts": Counts(PARALLEL.range, 100.0) @ PARALLEL,
}


@pytest.mark.parametrize("name", TOMOGRAPHS)
def test_views_of_projections(name: str) -> None:
    """A candidate holds all of its view, of every item, and nothing else."""
    A = TOMOGRAPHS[name]

    def check(labels: Callable[[Operator], Tensor]) -> None:
        labelled = Candidates(labels(A), A)
        assert labelled.count == 6
        for k in range(6):
            chosen = labelled.mask(torch.tensor([[k], [k]]))
            assert chosen.shape == (2, *A.range.shape)
            assert bool(chosen[:, :, k].all())
            assert int(chosen.sum()) == 2 * chosen[0, :, k].numel()

    check(views)

    def rows(A: Operator) -> Tensor:
        return torch.arange(A.range.shape[-2])[:, None]

    if name in ("cone", "helix"):
        with pytest.raises(AssertionError):
            check(rows)
    with pytest.raises(AssertionError):
        check(lambda A: torch.arange(A.range.shape[-1]))


def test_what_is_not_projections_has_no_views() -> None:
    with pytest.raises(ValueError, match=r"views wants projections .* measures \(1, 8\)"):
        views(Identity(Space((1, 8))))


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """In chunks of candidates the same, whatever their sizes."""
    A = CartesianMRI((4, 6), maps=coil_maps(3, 4, 6))
    x = torch.randn(5, 2, 3, 4, 6, dtype=C128, generator=seeded())
    labels = torch.tensor([0, 1, -1, 1, 2, 3])
    whole = Candidates(labels, A).grams(x)
    gathered: list[int] = []
    kept: Callable[..., Tensor] = Tensor.flatten

    def noted(self: Tensor, *args: int) -> Tensor:
        gathered.append(self.numel())
        return kept(self, *args)

    monkeypatch.setattr(candidates, "_CHUNK_NUMBERS", 500)
    monkeypatch.setattr(Tensor, "flatten", noted)
    assert torch.equal(Candidates(labels, A).grams(x), whole)
    assert max(gathered[2:]) <= 500
