"""What every sampler keeps to: units, phase, batches, seeds, resuming, memory, refusals.

One row per sampler. Each numerical check takes the sampler as an argument and is shown to refuse
faulty ones (``test_checks_find_faults``, ``..._the_careless``). Double precision, where not said
otherwise: a rounding that flips a resampling is not what is looked for here.
"""

import gc
import inspect
import pickle
import weakref
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

import recon
from recon import noise, samplers
from recon.integrators import Step
from recon.noise import per_draw
from recon.operators import (
    Blur,
    CartesianMRI,
    LinearOperator,
    Masking,
    Operator,
    PhaseRetrieval,
    Space,
    from_nonlinear,
    random_phases,
)
from recon.priors import Gaussian, Prior
from recon.samplers import AnnealedSde, Langevin, kernels

Method = Any  # a Sampler, what adapts one, or a plain function
Cases = dict[str, tuple[LinearOperator, Gaussian]]
Refused = Callable[..., None]
F64, C128 = torch.float64, torch.complex128
COILS, COMPLEX, REAL = ALL = ("coils", "real to complex", "real")


def as_it_is(method: Any) -> Any:
    return method


class Row(NamedTuple):
    """A sampler with settings that keep it short, and what it does not promise."""

    name: str
    settings: dict[str, Any]
    cases: tuple[str, ...] = ALL
    linear: bool = True  # refuses nonlinear operators
    noisy: bool = False  # refuses noise_std = 0
    random: bool = True  # draws differ from one another
    single: float = 1e-3  # what single precision keeps of the units; 0: not looked at
    adapt: Callable[[Any], Any] = as_it_is

    @property
    def method(self) -> Any:
        return self.adapt(getattr(samplers, self.name))

    @property
    def joint(self) -> bool:
        return bool(getattr(samplers, self.name).joint)


class Slices:
    """``mbir`` on volumes of one slice each, so that an item is a volume."""

    def __init__(self, of: Any) -> None:
        self.of = of

    def steps(self, y: Tensor, A: Operator, prior: Prior, **settings: Any) -> Any:
        std, scale = torch.as_tensor(settings.pop("noise_std", 0.0)), torch.as_tensor(prior.scale)
        if std.ndim:
            std = std.unsqueeze(-1)
        if scale.ndim:  # per item: every prior here has 1 of its own
            prior = prior.of.rescaled(scale.unsqueeze(-1))  # type: ignore[union-attr, operator]
        volumes = y.unsqueeze(y.ndim - len(A.range.shape)) if isinstance(y, Tensor) else y
        for step in self.of.steps(volumes, A, prior, noise_std=std, **settings):
            yield step._replace(x0=step.x0.squeeze(-1 - len(A.domain.shape)))


class Scanned:
    """``ads`` measuring what a finished measurement holds."""

    def __init__(self, of: Any) -> None:
        self.of = of

    def steps(self, y: Tensor, A: Operator, prior: Prior, **settings: Any) -> Any:
        rows = torch.arange(A.range.shape[-2])[:, None]
        if isinstance(A, CartesianMRI):  # of the columns that it measures
            rows = torch.where(A.mask, rows, -1)
        first = list(range(settings["budget"] if settings["steps"] == 1 else 2))
        yield from self.of.steps(lambda selection: torch.where(selection.mask, y, 0), A, prior,
                                 candidates=rows, initial=first, batch=A.range.batch_of(y),
                                 **settings)


# of stsl, where data without noise, or a single level, are fitted more closely than noise allows
# of smc and its kin, where a few particles of many measurements hang on one
pytestmark = [pytest.mark.filterwarnings("ignore:the residual y - A x"),
              pytest.mark.filterwarnings("ignore:the . draws")]
ROWS = [
    Row("ads", {"steps": 8, "cg_iterations": 4, "budget": 4}, adapt=Scanned),
    Row("dds", {"steps": 8, "cg_iterations": 4}),
    Row("ddnm", {"steps": 8, "cg_iterations": 4}),
    Row("diffpir", {"steps": 8, "cg_iterations": 4}),
    Row("dps", {"steps": 8}, linear=False),
    Row("dps", {"steps": 8, "rule": "annealed", "gain": 1.0}, linear=False),
    Row("pigdm", {"steps": 8, "cg_iterations": 4}),
    Row("tmpd", {"steps": 8}),
    Row("tmpd", {"steps": 8, "covariance": "full", "iterations": 4}),
    # Adam divides by the gradient's own size: single precision's rounding of it comes through
    Row("red_diff", {"steps": 8}, linear=False, single=1e-2),
    Row("daps", {"steps": 4, "conditional": Langevin(iterations=20)}, noisy=True, linear=False),
    Row("ddrm", {"steps": 8}),
    Row("mbir", {"steps": 8, "cg_iterations": 4}, adapt=Slices),
    Row("diffusion_mbir", {"steps": 8}, adapt=Slices),
    Row("latent_dps", {"steps": 8, "eta": 1.0}, linear=False),
    Row("psld", {"steps": 8, "eta": 1.0}),
    Row("smc", {"steps": 8}, linear=False, noisy=True, single=0),
    Row("smc", {"steps": 8, "kernel": AnnealedSde()}, linear=False, noisy=True, single=0),
    Row("twisted", {"steps": 8, "cg_iterations": 4}, noisy=True, single=0),
    Row("mcgdiff", {"steps": 8}, noisy=True, single=0),
    Row("stsl", {"steps": 8, "inner_steps": 2, "start_noise": 1.0}),
]
TABLE = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
EVERY = pytest.mark.parametrize(("row", "case"), [(r, c) for r in ROWS for c in r.cases],
                                ids=lambda v: v if isinstance(v, str) else v.name)
STD = torch.tensor([0.1, 0.02, 0.5, 0.1, 0.3], dtype=F64)
SCALE = torch.tensor([1.0, 30.0, 0.2, 1.0, 5.0], dtype=F64)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def relative(got: Tensor, want: Tensor) -> float:
    assert got.shape == want.shape
    assert bool(got.isfinite().all())
    size = float(want.abs().max())
    return float((got - want).abs().max()) / (size or 1.0)


def measured(A: Operator, prior: Gaussian, batch: int, seed: int = 5) -> Tensor:
    x = prior.sample(batch, seeded(seed))
    y = A(x)
    n = torch.randn((*y.shape, 2), generator=seeded(seed + 1), dtype=F64)
    return y + 0.1 * (torch.view_as_complex(n) if y.is_complex() else n[..., 0])


def run(method: Method, *args: Any, **settings: Any) -> Tensor:
    """The draws of a sampler, an adapted one, or a plain function."""
    if not hasattr(method, "steps"):
        return method(*args, **settings)
    *_, last = method.steps(*args, **settings)
    return last.x0


def check_units(method: Method, A: LinearOperator, prior: Gaussian, c: float, std: float,
                tolerance: float, **settings: Any) -> None:
    """Fails unless measurements, noise and prior times ``c`` give the result times ``c``."""
    y = measured(A, prior, 1)
    if prior.mean.dtype in (torch.float32, torch.complex64):
        y = y.to(torch.complex64 if y.is_complex() else torch.float32)
    got, want = (run(method, f * y, A, prior.rescaled(f), noise_std=f * std, samples=4,
                     generator=seeded(), **settings) for f in (c, 1.0))
    assert relative(got / c, want) < tolerance


def check_items(method: Method, A: Operator, prior: Gaussian, noisy: bool,
                joint: bool = False, **settings: Any) -> None:
    """Fails unless items of their own size, noise and scale, one all zero, are as one by one."""
    y = measured(A, prior, 5) * SCALE.view(-1, 1, 1, 1)
    y[3] = 0
    std = SCALE * STD if noisy else torch.zeros(5, dtype=F64)
    got = run(method, y, A, prior.rescaled(SCALE), noise_std=std, samples=3,
              generator=per_draw(7, range(3), range(5)), **settings)
    assert got.shape == (3, 5, 1, 8, 8)
    for i in range(5):
        one = {"noise_std": std[i], **settings}
        alone = run(method, y[i], A, prior.rescaled(SCALE[i]), samples=3,
                    generator=per_draw(7, range(3), range(i, i + 1)), **one)
        assert relative(got[:, i], alone) < 1e-7
        if not joint and i in (0, 3):  # the zero one among them
            first = run(method, y[i], A, prior.rescaled(SCALE[i]), samples=1,
                        generator=per_draw(7, range(1), range(i, i + 1)), **one)
            assert relative(got[:1, i], first) < 1e-7


def check_phase(method: Method, A: LinearOperator, prior: Gaussian,
                monkeypatch: pytest.MonkeyPatch, **settings: Any) -> None:
    """Fails unless data and all noise turned by one angle turn the result."""
    turn = torch.exp(torch.tensor(0.7j, dtype=C128))
    y, draw = measured(A, prior, 2), noise._draw
    want = run(method, y, A, prior, noise_std=0.1, samples=4, generator=seeded(), **settings)
    with monkeypatch.context() as patched:
        patched.setattr(noise, "_draw", lambda *args: turn * draw(*args))
        got = run(method, turn * y, A, prior, noise_std=0.1, samples=4, generator=seeded(),
                  **settings)
    assert relative(got, turn * want) < 1e-8


def single(prior: Gaussian) -> Gaussian:
    return Gaussian(prior.mean.to(torch.complex64 if prior.is_complex else torch.float32),
                    spectrum=prior.eigenvalues.float())


@EVERY
@pytest.mark.parametrize("c", [1e-6, 1e6])
def test_units_cancel(cases: Cases, row: Row, case: str, c: float) -> None:
    A, prior = cases[case]
    for std in (0.1, 0.0)[: 1 if row.noisy else 2]:
        check_units(row.method, A, prior, c, std, 1e-6, **row.settings)
    if row.single:
        check_units(row.method, A, single(prior), c, 0.1, row.single, **row.settings)


@TABLE
def test_phase_passes_through(cases: Cases, row: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    if COILS not in row.cases:
        pytest.fail(f"{row.name} wants a complex case")
    check_phase(row.method, *cases[COILS], monkeypatch, **row.settings)


@EVERY
def test_items_stand_alone(cases: Cases, row: Row, case: str) -> None:
    for noisy in (True, False)[: 1 if row.noisy else 2]:
        check_items(row.method, *cases[case], noisy, row.joint, **row.settings)


@pytest.mark.parametrize("row", [row for row in ROWS if not row.linear], ids=lambda row: row.name)
def test_items_stand_alone_without_phases(cases: Cases, row: Row) -> None:
    """Behind an operator whose derivatives are differences, or depend on the image."""
    A = PhaseRetrieval(Space((1, 8, 8), C128), random_phases(4, (8, 8)))
    check_items(row.method, A, cases[COILS][1], True, row.joint, **row.settings)


def test_a_gain_by_the_batch_shows(cases: Cases, monkeypatch: pytest.MonkeyPatch) -> None:
    right = kernels.local_gain

    def wrong(A: Operator, y: Tensor, size: Tensor) -> Tensor:
        return right(A, y, size) * (1 + 1e-3 * torch.Size(A.range.batch_of(y)).numel())

    monkeypatch.setattr(kernels, "local_gain", wrong)
    A = PhaseRetrieval(Space((1, 8, 8), C128), random_phases(4, (8, 8)))
    with pytest.raises(AssertionError):
        check_items(samplers.smc, A, cases[COILS][1], True, True, steps=8)


def test_checks_find_faults(cases: Cases, refused: Refused,
                            monkeypatch: pytest.MonkeyPatch) -> None:
    settings: dict[str, Any] = {"steps": 8, "cg_iterations": 4}
    for case in ALL:
        refused(lambda m, c=case: check_items(m, *cases[c], True, **settings),
                "shared step", "one stream", "one noise level")
        for c in (1e-6, 1e6):
            faults = ["unscaled levels", *["absolute epsilon"] * (c < 1)]
            refused(lambda m, case=case, c=c: check_units(
                m, *cases[case], c, 0.1, 1e-6, **settings), *faults)
    refused(lambda m: check_phase(m, *cases[COILS], monkeypatch, **settings), "real part")


def check_seeds(method: Method, A: LinearOperator, prior: Gaussian, random: bool = True,
                joint: bool = False, **settings: Any) -> None:
    """Fails unless a seed gives its own bits, inputs stay and no graph is kept."""
    y, std = measured(A, prior, 2), torch.tensor([0.1, 0.2], dtype=F64)
    kept = y.clone(), std.clone(), [p.clone() for p in prior.buffers()]
    runs = [run(method, y, A, prior, noise_std=std, samples=2, generator=seeded(s), **settings)
            for s in (0, 0, 1)]
    assert torch.equal(runs[0], runs[1])
    assert torch.equal(runs[0], runs[2]) != random
    if not joint:  # resampled particles may be copies of one
        assert torch.equal(runs[0][0], runs[0][1]) != random
    assert torch.equal(y, kept[0])
    assert torch.equal(std, kept[1])
    assert all(torch.equal(p, q) for p, q in zip(prior.buffers(), kept[2], strict=True))
    assert runs[0].shape == (2, 2, 1, 8, 8)
    assert runs[0].dtype == prior.mean.dtype
    nested = run(method, y[None], A, prior, noise_std=std[None], samples=2, generator=seeded(0),
                 **settings)
    assert relative(nested[:, 0], runs[0]) < 1e-8
    y.requires_grad_()
    again = run(method, y, A, prior, noise_std=std, samples=2, generator=seeded(0), **settings)
    assert not again.requires_grad


@EVERY
def test_seeds_and_inputs(cases: Cases, row: Row, case: str) -> None:
    check_seeds(row.method, *cases[case], row.random, row.joint, **row.settings)


@EVERY
def test_one_step(cases: Cases, row: Row, case: str) -> None:
    A, prior = cases[case]
    got = run(row.method, measured(A, prior, 2), A, prior, noise_std=0.1, samples=2,
              generator=seeded(), **row.settings | {"steps": 1})
    assert got.shape == (2, 2, 1, 8, 8)
    assert bool(got.isfinite().all())


def check_resumes(method: Method, A: LinearOperator, prior: Gaussian, **settings: Any) -> None:
    """Fails unless a saved step goes on to the very end it came from, and is never written to."""
    y, source = measured(A, prior, 2), seeded()
    seen = []
    for step in method.steps(y, A, prior, noise_std=0.1, samples=3, generator=source, **settings):
        copies = [v.clone() if isinstance(v, Tensor) else v for v in step]
        seen.append((step, copies, source.get_state()))
    assert [step.index for step, _, _ in seen] == list(range(1, len(seen) + 1))
    assert len(seen) >= 3
    for k in (0, len(seen) // 2, len(seen) - 2):
        saved, _, state = seen[k]
        later = torch.Generator()
        later.set_state(state)
        got = run(method, y, A, prior, noise_std=0.1, samples=3, generator=later, start=saved,
                  **settings)
        assert torch.equal(got, seen[-1][0].x0)
    for step, copies, _ in seen:
        for value, copy in zip(step, copies, strict=True):
            assert not isinstance(copy, Tensor) or torch.equal(value, copy)


@EVERY
def test_resumes_bit_for_bit(cases: Cases, row: Row, case: str) -> None:
    check_resumes(row.method, *cases[case], **row.settings)


def check_memory(method: Method, A: LinearOperator, prior: Gaussian, **settings: Any) -> None:
    """Fails if more than two steps are alive at any time, or any afterwards, or hold a graph."""
    refs: list[weakref.ref[Tensor]] = []
    alive: list[int] = []
    for step in method.steps(measured(A, prior, 2), A, prior, noise_std=0.1, samples=2,
                             generator=seeded(), **settings):
        refs.extend(weakref.ref(t) for t in (step.x, step.x0))
        assert not any(isinstance(v, Tensor) and v.requires_grad for v in step)
        alive.append(sum(ref() is not None for ref in refs))
    assert max(alive) <= 4
    del step
    gc.collect()
    assert not any(ref() is not None for ref in refs)


@TABLE
def test_memory_is_flat(cases: Cases, row: Row) -> None:
    check_memory(row.method, *cases[COILS], **row.settings)


class Faulty:
    """DDS that forgets its start, its seed, or nothing at all, or writes to its input."""

    def __init__(self, fault: str) -> None:
        self.fault, self.kept = fault, list[Step]()

    def steps(self, y: Tensor, A: LinearOperator, prior: Prior, **settings: Any) -> Iterator[Step]:
        if self.fault == "forgets its start":
            settings.pop("start", None)
        if self.fault == "forgets its seed":
            settings["generator"] = None
        if self.fault == "writes to its input":
            y.data *= 1.01
        for step in samplers.dds.steps(y, A, prior, **settings):
            yield step
            if self.fault == "keeps all":
                self.kept.append(step)
            if self.fault == "writes to its step":
                step.x0.mul_(2)


@pytest.mark.parametrize(("check", "faults"), [
    (check_seeds, ("forgets its seed", "writes to its input")),
    (check_resumes, ("forgets its start", "writes to its step")),
    (check_memory, ("keeps all",))])
def test_checks_find_the_careless(cases: Cases, check: Callable[..., None],
                                  faults: tuple[str, ...]) -> None:
    check(Faulty(""), *cases[COILS], steps=8, eta=0.5)
    for fault in faults:
        with pytest.raises(AssertionError):
            check(Faulty(fault), *cases[COILS], steps=8, eta=0.5)


@TABLE
def test_refusals(cases: Cases, row: Row) -> None:
    A, prior = cases[REAL if REAL in row.cases else row.cases[0]]
    y = measured(A, prior, 2)
    settings = {"noise_std": 0.1, **row.settings}
    bad = y.clone()
    bad[1] = torch.nan
    with pytest.raises(ValueError, match="NaN or infinity"):
        run(row.method, bad, A, prior, **settings)
    with pytest.raises(ValueError, match=r"noise_std wants|noise_std > 0"):
        run(row.method, y, A, prior, **settings | {"noise_std": -1.0})
    square = from_nonlinear(lambda x: A(x) + 0.1 * A(x.abs().square() + 0 * x), domain=A.domain,
                            range=A.range)
    if row.linear:
        with pytest.raises(TypeError, match="wants a linear operator"):
            run(row.method, y, square, prior, **settings)
    else:
        got = run(row.method, y, square, prior, generator=seeded(), samples=2, **settings)
        assert bool(got.isfinite().all())
    if row.noisy:
        for std in (0.0, torch.tensor([0.1, 0.0])):
            with pytest.raises(ValueError, match="noise_std > 0"):
                run(row.method, y, A, prior, **settings | {"noise_std": std})
    latent = Gaussian(prior.mean, variance=1.0)
    latent.is_latent = True
    with pytest.raises(TypeError, match="latents"):
        run(row.method, y, A, latent, **settings)
    with pytest.raises((ValueError, TypeError)):
        run(row.method, y, A, prior, **settings | {"steps": 0})


@TABLE
@pytest.mark.parametrize("case", [COILS, REAL])
def test_refuses_an_operator_of_other_items(cases: Cases, row: Row, case: str) -> None:
    """One slice with the masks of three once gave three samples, each by another mask."""
    A, prior = cases[case]
    drawn = torch.rand(3, 1, 8, 8, generator=seeded(3))
    kernels = Blur(drawn[..., :3, :3], Space((1, 8, 8), A.domain.dtype))
    each = (CartesianMRI((8, 8), drawn[..., :1, :] < 0.7) if case == COILS else
            Masking(drawn < 0.7, A.domain))
    settings: dict[str, Any] = {"noise_std": 0.1, **row.settings}
    for operator in (each, kernels)[row.adapt is Scanned:]:  # asks for what masks leave out
        y = operator(prior.sample(3, seeded()))
        for some in (y[1], y[:1], y[:2]):
            for n in (1, 3):
                with pytest.raises(ValueError, match=r"each of the items \(3,\), y is of items"):
                    run(row.method, some, operator, prior, samples=n, **settings)
    if row.adapt is not Slices:  # whose items are volumes of one slice
        got = run(row.method, y, kernels, prior, samples=2, generator=seeded(), **settings)
        assert got.shape == (2, 3, 1, 8, 8)


@pytest.mark.parametrize("row", [r for r in ROWS if r.adapt is as_it_is], ids=lambda r: r.name)
def test_reconstruct_calls_it(cases: Cases, row: Row) -> None:
    """By name, with its own settings; chunks change nothing."""
    A, prior = cases[COILS]
    y = measured(A, prior, 2)
    settings = {**row.settings, "noise_std": 0.1, "samples": 3, "seed": 0}
    found = recon.reconstruct(y, A, prior, row.name, **settings)
    assert found.samples.shape == (3, 2, 1, 8, 8)
    assert bool(found.samples.isfinite().all())
    assert found.settings["sampler"] == row.name
    chunked = recon.reconstruct(y, A, prior, row.name, chunk=1, **settings)
    assert relative(chunked.samples, found.samples) < 1e-7


def test_every_sampler_has_its_row() -> None:
    named = {n for n in samplers.__all__ if isinstance(getattr(samplers, n), samplers.Sampler)}
    assert named - {row.name for row in ROWS} == {"tv", "wavelet"}  # these use no prior


def test_samplers_are_sent_to_other_processes_by_name() -> None:
    for name in {row.name for row in ROWS} | {"tv", "wavelet"}:
        method = getattr(samplers, name)
        assert pickle.loads(pickle.dumps(method)) is method


def test_table_wants_what_all_have() -> None:
    for row in ROWS:
        known = inspect.signature(getattr(samplers, row.name)).parameters
        for name in ("noise_std", "samples", "generator", "start", "callback"):
            assert name in known, (row.name, name)
