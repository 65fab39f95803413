"""What cannot work is refused in one sentence, before the prior is called once."""

import inspect
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import recon
from recon.integrators import Step, schedules
from recon.noise import per_draw
from recon.operators import (
    CartesianMRI,
    ConeBeamCT,
    FanBeamCT,
    LinearOperator,
    Masking,
    NonCartesianMRI,
    Space,
    Weighting,
    from_functions,
    from_nonlinear,
    stack,
)
from recon.operators.mri import Covariance, whiten
from recon.priors import Gaussian, Prior
from recon.samplers import Sampler, dds, tv
from recon.samplers.problem import check_problem

SHAPE = (1, 4, 6)
REAL = Masking(torch.ones(4, 6), Space(SHAPE))
MRI = CartesianMRI((4, 6), torch.tensor([1, 0, 1, 1, 0, 1]))
SQUARE = from_nonlinear(lambda x: x.square(), domain=Space(SHAPE), range=Space(SHAPE))
Y = torch.ones(2, *SHAPE)


class Untouched(Prior):
    """A prior that must not be called."""

    def __init__(self, channels: int = 1, is_complex: bool = False, **settings: Any) -> None:
        super().__init__(channels=channels, is_complex=is_complex, **settings)

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:  # noqa: ARG002
        pytest.fail("the prior was called")


PRIOR = Untouched()


def bad(index: tuple[int, ...], value: float = math.nan) -> Tensor:
    y = torch.ones(2, 3, *SHAPE)
    y[index] = value
    return y


def saved(shape: tuple[int, ...] = (1, 2, *SHAPE), index: int = 2, level: float = 0.0) -> Step:
    sigma = schedules.vp(50).float()[index] + level
    return Step(index, sigma, torch.zeros(shape), torch.zeros(shape))


Case = tuple[type[Exception], str, dict[str, Any]]
PROBLEMS: list[Case] = [
    (TypeError, "operator wants a recon Operator, got function", {"operator": lambda x: x}),
    (TypeError, r"linear operator, _Nonlinear\[.*\] is not", {"operator": SQUARE}),
    (TypeError, "measurements y want a tensor, got ndarray", {"y": np.ones((2, *SHAPE))}),
    (TypeError, "measurements y: want a complex floating tensor, got torch.float32",
     {"operator": MRI}),
    (TypeError, "want a real floating tensor, got torch.int64", {"y": Y.long()}),
    (ValueError, r"measurements y: want \(\*batch, 1, 4, 6\), got \(2, 1, 6, 4\)", {"y": Y.mT}),
    (ValueError, r"NaN or infinity in slice \(1, 2\)", {"y": bad((1, 2, 0, 3, 5))}),
    (ValueError, r"NaN or infinity in slice 2", {"y": bad((0, 2, 0, 0, 0), math.inf)[0]}),
    (ValueError, r"NaN or infinity: mend", {"y": bad((0, 0, 0, 0, 0))[0, 0]}),
    (TypeError, r'acts on complex images, the prior is of real ones: use prior.as_complex\("chann',
     {"operator": MRI, "y": Y + 0j}),
    (TypeError, "acts on real images, the prior is of complex ones: use a prior of real images",
     {"prior": Untouched(is_complex=True)}),
    (ValueError, r"images of 1 channel\(s\), the prior is of 3", {"prior": Untouched(3)}),
    (ValueError, r"images \(1, 4, 6\), the prior is of \(1, 6, 6\) only",
     {"prior": Untouched(space=Space((1, 6, 6)))}),
    (ValueError, "noise_std wants finite numbers >= 0, got -0.1", {"noise_std": -0.1}),
    (ValueError, "noise_std wants finite numbers >= 0, got nan", {"noise_std": math.nan}),
    (ValueError, "noise_std wants finite numbers >= 0",
     {"noise_std": torch.tensor([0.1, math.inf])}),
    (ValueError, r"one number or one per item \(2,\), got \(3,\)", {"noise_std": torch.ones(3)}),
    (ValueError, r"each of the items \(3,\), y is of items \(2,\): pass the operator of these",
     {"operator": Masking(torch.ones(3, 1, 4, 6), Space(SHAPE))}),
    (ValueError, r"each of the items \(3,\), y is of items \(\): pass the operator of these",
     {"operator": Masking(torch.ones(3, 1, 4, 6), Space(SHAPE)), "y": Y[0]}),
    (ValueError, "samples wants at least 1, got 0", {"samples": 0}),
    (TypeError, "samples wants a whole number, got 1.5", {"samples": 1.5}),
    # once run in half precision, to infinity in volumes
    (TypeError, r"single or double precision, got torch.float16: pass y.to\(torch.float32\)",
     {"y": Y.half()}),
    (TypeError, r"single or double precision, got torch.bfloat16", {"y": Y.bfloat16()}),
    (TypeError, "noise_std wants a number, or a tensor .*, got str", {"noise_std": "0.1"}),
    (TypeError, "noise_std wants a number, or a tensor .*, got NoneType", {"noise_std": None}),
]
SETTINGS: list[Case] = [
    (ValueError, "steps wants at least 1, got 0", {"steps": 0}),
    (TypeError, "steps wants a whole number, got 2.5", {"steps": 2.5}),
    (TypeError, "sigmas wants a tensor, got list", {"sigmas": [1.0, 0.0]}),
    (ValueError, "at most 1000 steps, got 1001", {"steps": 1001}),
    (ValueError, "cg_iterations wants at least 1, got 0", {"cg_iterations": 0}),
    (ValueError, "gamma wants a number >= 0, .* got -1", {"gamma": -1.0}),
    (ValueError, "gamma wants a number >= 0, .* got nan", {"gamma": math.nan}),
    (ValueError, r"eta wants a number in \[0, 1\], got 1.1", {"eta": 1.1}),
    (ValueError, r"eta wants a number in \[0, 1\], got -0.1", {"eta": -0.1}),
    (ValueError, 'rule wants "ddim" or "released", got .ddpm.', {"rule": "ddpm"}),
    (ValueError, r"two falling levels, the last one 0, got \[1.0, 2.0, 0.0\]",
     {"sigmas": torch.tensor([1.0, 2.0, 0.0])}),
    (ValueError, r"two falling levels, .*, got \[1.0, nan, 0.0\]",
     {"sigmas": torch.tensor([1.0, math.nan, 0.0])}),
    (ValueError, r"two falling levels, .*, got \[0.0\]", {"sigmas": torch.zeros(1)}),
    (ValueError, r"two falling levels, .*, got 1.0", {"sigmas": torch.tensor(1.0)}),
    (ValueError, "finite levels, got inf first", {"sigmas": torch.tensor([math.inf, 1.0, 0.0])}),
    (ValueError, "sigmas must end in 0, got 1.0", {"sigmas": torch.tensor([2.0, 1.0])}),
    (ValueError, r"sigmas must end in 0, got \[0.0, 1.0\]",
     {"sigmas": torch.tensor([[2.0, 2.0], [0.0, 1.0]])}),
    (ValueError, "sigmas must end in 0, got -1.0", {"sigmas": torch.tensor([2.0, -1.0])}),
]
FOR_DDS: list[Case] = [
    (TypeError, "prior wants a recon Prior, got function: .* subclass Prior",
     {"prior": lambda x, sigma: x}),  # noqa: ARG005
    (ValueError, "zero for some items only", {"noise_std": torch.tensor([0.1, 0.0])}),
    (ValueError, r"one level for all or one per item of the batch \(2,\), got \(3,\)",
     {"sigmas": torch.tensor([[2.0] * 3, [0.0] * 3])}),
    (ValueError, r"one per item of the batch \(2,\), got \(3,\)",
     {"prior": PRIOR.rescaled(torch.ones(3))}),
    (ValueError, r"one per item of the batch \(\), got \(2,\)",  # once taken for two samples
     {"y": Y[0], "prior": PRIOR.rescaled(torch.ones(2))}),
    (ValueError, r"one per item of the batch \(2,\) or one per sample and item, got 3",
     {"generator": per_draw(0, range(1), range(3))}),
    (TypeError, "torch.Generator or a list of them, got int", {"generator": 0}),
    (ValueError, r"start holds \(4, 2, 1, 4, 6\), want \(1, 2, 1, 4, 6\): pass .* samples=",
     {"start": saved((4, 2, *SHAPE))}),
    (ValueError, "start has done 50 of 50 steps: its x0 is the result", {"start": saved(index=50)}),
    (ValueError, "start was saved at level .*, step 2 of these levels is",
     {"start": saved(level=1.0)}),
]


def call(method: Callable[..., Any], case: dict[str, Any]) -> Any:
    arguments = {"y": Y, "operator": REAL, "prior": PRIOR, "noise_std": 0.1, **case}
    return method(arguments.pop("y"), arguments.pop("operator"), arguments.pop("prior"),
                  **arguments)


@pytest.mark.parametrize(("error", "message", "case"), PROBLEMS + SETTINGS + FOR_DDS)
def test_dds_refuses(error: type[Exception], message: str, case: dict[str, Any]) -> None:
    with pytest.raises(error, match=message):
        call(dds, case)


class Idle(Masking):
    """An operator that must not be used."""

    def __init__(self) -> None:
        super().__init__(torch.ones(4, 6), Space(SHAPE))

    def forward(self, x: Tensor) -> Tensor:  # noqa: ARG002
        pytest.fail("the operator was used")

    def adjoint(self, y: Tensor) -> Tensor:
        return self.forward(y)

    def normal(self, x: Tensor) -> Tensor:
        return self.forward(x)


FOR_RECONSTRUCT: list[Case] = [
    (ValueError, "no sampler 'ddim': want one of .*dds, .*tv, .*wavelet", {"sampler": "ddim"}),
    (ValueError, "no sampler 'sampler'", {"sampler": "sampler"}),
    (TypeError, "dds takes no setting 'nfe' here: it has steps, cg_iterations, gamma", {"nfe": 3}),
    (TypeError, "takes no setting 'generator' here: reconstruct draws by seed=.* samplers.dds",
     {"generator": torch.Generator()}),
    (TypeError, "takes no setting 'start' here", {"start": saved()}),
    (TypeError, "tv wants the setting weight", {"sampler": "tv", "prior": None}),
    (TypeError, "tv takes no setting 'steps' here: it has weight", {"sampler": "tv", "steps": 3}),
    (TypeError, 'dds wants a prior, got None: .*"tv" or "wavelet"', {"prior": None}),
    (ValueError, "chunk wants at least 1 sample, or None, got 0", {"chunk": 0}),
    (ValueError, "seed wants whole numbers >= 0, got -1", {"seed": -1}),
    (ValueError, r"scale wants one number or one per item \(2,\), got \(3,\)",
     {"scale": torch.ones(3)}),
    (ValueError, "rescaled wants finite scale > 0, got -1", {"scale": -1.0}),
    (ValueError, r"rescaled wants finite scale > 0, got \[1.0, 0.0\]",
     {"scale": torch.tensor([1.0, 0.0])}),
    (ValueError, "weight wants a finite number >= 0, got -1",
     {"sampler": "tv", "prior": None, "weight": -1.0}),
]


@pytest.mark.parametrize("normalised", [True, False])
@pytest.mark.parametrize(("error", "message", "case"), PROBLEMS + SETTINGS + FOR_RECONSTRUCT)
def test_reconstruct_refuses_before_any_work(error: type[Exception], message: str,
                                             case: dict[str, Any], normalised: bool) -> None:
    prior = Untouched(normalised=normalised)
    with pytest.raises(error, match=message):
        call(recon.reconstruct, {"operator": Idle(), "prior": prior, **case})


class Unsaid(LinearOperator):
    """A mask for each of three items, of which nothing is said."""

    def __init__(self) -> None:
        super().__init__(Space(SHAPE), Space(SHAPE))
        self.register_buffer("mask", torch.ones(3, *SHAPE))
        self.products = 0

    def forward(self, x: Tensor) -> Tensor:
        self.products += 1
        return x * self.get_buffer("mask").to(x.dtype)


def test_items_are_those_of_all_parts() -> None:
    """Of products, sums and stacks; what does not say is asked, and of it only one product."""
    each, one = Masking(torch.ones(3, *SHAPE), Space(SHAPE)), Masking(torch.ones(SHAPE),
                                                                      Space(SHAPE))
    A = Unsaid()
    within = from_functions(lambda x: x * torch.ones(3, *SHAPE, dtype=x.dtype),
                            domain=Space(SHAPE), range=Space(SHAPE))
    for held in (each, A, within):
        parts = [held, 2 * held, held.H, held + one, one - held, one @ held, held @ one,
                 SQUARE @ held]
        for B in parts:
            for y in (Y[0], Y[:1], Y[:2]):
                with pytest.raises((ValueError, RuntimeError)) as refused:
                    check_problem(y, B, None, 0.1, linear=False)
                # a sum or an adjoint that is asked may not take one item: torch's words
                if B.items is not None or B is held:
                    assert "for each of the items (3,)" in str(refused.value)
            check_problem(torch.ones(3, *SHAPE), B, None, 0.1, linear=False)
            check_problem(torch.ones(2, 3, *SHAPE), B, None, 0.1, linear=False)
        with pytest.raises((ValueError, RuntimeError)):
            check_problem(torch.ones(2, 4, 6), stack(one, held), None, 0.1)
        check_problem(torch.ones(3, 2, 4, 6), stack(one, held), None, 0.1)
    before = A.products
    check_problem(torch.ones(3, *SHAPE), A, None, 0.1)
    assert A.products == before + 1
    wide = Masking(torch.ones(1, *SHAPE), Space(SHAPE))  # one for all
    for y in (Y[0], Y):
        assert check_problem(y, wide, None, 0.1) == check_problem(y, one, None, 0.1)


class Strict(Unsaid):
    """The same, taking no batch but one that ends in the three."""

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[:-3][-1:] != (3,):
            raise IndexError("wants three")
        return super().forward(x)


def test_items_of_what_takes_only_these() -> None:
    for y in (torch.ones(3, *SHAPE), torch.ones(2, 3, *SHAPE)):
        check_problem(y, Strict(), None, 0.1)
    for y in (Y[0], Y[:1], Y):
        with pytest.raises(IndexError, match="wants three"):
            check_problem(y, Strict(), None, 0.1)


def test_operators_may_refuse_an_empty_image() -> None:
    class Normalised(Unsaid):
        def forward(self, x: Tensor) -> Tensor:
            if not bool(x.any()):
                raise ValueError("empty image")
            return super().forward(x)

    check_problem(torch.ones(3, *SHAPE), Normalised(), None, 0.1)
    with pytest.raises(ValueError, match=r"items \(3,\), y is of items"):
        check_problem(torch.ones(*SHAPE), Normalised(), None, 0.1)


def test_items_cost_heavy_operators_no_product(monkeypatch: pytest.MonkeyPatch) -> None:
    turn = [0.0, 1.6, 3.0, 5.0]
    cone, fan = ConeBeamCT(4, turn, (5, 6), 20.0, backend="torch"), FanBeamCT(5, turn, 20.0)
    mri = CartesianMRI((4, 6), maps=torch.ones(2, 4, 6) + 0j)
    spokes = NonCartesianMRI((4, 6), torch.linspace(-2, 2, 48).view(3, 8, 2), mri.maps)
    for A in (cone, fan, mri, spokes):
        for method in ("forward", "adjoint", "normal"):
            monkeypatch.setattr(type(A), method, lambda *_: pytest.fail("a product was taken"))
        y = A.range.zeros(2)
        weighted = Weighting(torch.ones(A.range.shape), A.range) @ A
        for B in (A, 2 * A, weighted, A + A, Masking(torch.ones(A.range.shape), A.range) @ A):
            assert check_problem(y, B, None, 0.1) == torch.tensor(0.1)
        if A.range.is_complex:
            noise = Covariance(torch.eye(2) + 0j)
            assert whiten(y, A, noise)[1].items == ()


def test_good_inputs_pass() -> None:
    """What the refusals above differ from."""
    prior = Gaussian(torch.zeros(SHAPE), variance=1.0)
    for std in (0.1, torch.tensor(0.1), torch.tensor([0.1, 0.2]), torch.ones(2).double()):
        assert call(dds, {"prior": prior, "noise_std": std, "steps": 2}).shape == (1, 2, *SHAPE)
    start = saved()._replace(x0=torch.ones(1))
    assert call(dds, {"prior": prior, "start": start}).isfinite().all()
    call(dds, {"prior": prior.rescaled(torch.ones(1)), "steps": 2})
    dds.check(**{name: p.default for name, p in inspect.signature(dds).parameters.items()})
    tv.check(weight=-1.0)  # has no check of its own before measurements
    noise = check_problem(Y.double(), REAL, None, 1)
    assert (noise.dtype, noise.shape) == (torch.float64, ())
    assert check_problem(Y, SQUARE, PRIOR, 0.0, linear=False) == 0
    assert isinstance(dds, Sampler)
