"""Grey images against Pillow, filter arrays by their letters, masks by their counts."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from recon.operators import (
    Greyscale,
    Masking,
    Space,
    colour_filter,
    missing_block,
    random_pixels,
)


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_grey_is_that_of_pillow() -> None:
    picture = torch.randint(256, (3, 9, 8), generator=torch.Generator().manual_seed(0))
    pillow = Image.fromarray(picture.movedim(0, -1).numpy().astype(np.uint8)).convert("L")
    want = torch.from_numpy(np.asarray(pillow).astype(np.float64))
    got = Greyscale(Space((3, 9, 8)))(picture.double())[0]
    assert float((got - want).abs().max()) <= 0.51  # Pillow rounds to whole numbers
    swapped = Greyscale(Space((3, 9, 8)))(picture.flip(0).double())[0]  # blue, green, red
    assert float((swapped - want).abs().max()) > 5


@pytest.mark.parametrize("kind", [torch.float64, torch.complex128])
def test_grey_solves_in_closed_form(kind: torch.dtype) -> None:
    A = Greyscale(Space((3, 2, 2), kind), (0.2, -0.7, 0.1))
    M = A(torch.eye(12, dtype=kind).view(12, 3, 2, 2)).flatten(1).T
    rhs = noise(2, 3, 2, 2, dtype=kind)
    shift = torch.tensor([0.01, 3.0], dtype=torch.float64)
    for i in range(2):
        system = M.mH @ M + shift[i] * torch.eye(12).double()
        want = torch.linalg.solve(system, rhs[i].flatten())
        got = A.solve(rhs, shift, max_iter=0)[i].flatten()
        assert float((got - want).norm() / want.norm()) < 1e-12
    least = A.solve(A.adjoint(A(rhs)), 0.0).flatten(1)
    assert float((least - A(rhs).flatten(1) @ torch.linalg.pinv(M).T).norm()) < 1e-13


def test_colour_filter_spells_its_pattern() -> None:
    mask = colour_filter("GBRG", (5, 6))
    assert mask.shape == (3, 5, 6)
    assert torch.equal(mask.sum(0), torch.ones(5, 6, dtype=torch.int64))
    spelt = ["".join("RGB"[int(mask[:, i, j].int().argmax())] for j in range(6)) for i in range(5)]
    assert spelt == ["GBGBGB", "RGRGRG"] * 2 + ["GBGBGB"]
    assert colour_filter("RGB" * 3, (4, 4)).sum(0).eq(1).all()
    Masking(mask, Space((3, 5, 6)))


def test_random_pixels_are_as_many_as_said_and_repeat() -> None:
    mask = random_pixels((16, 25), 0.3, seed=4)
    assert mask.shape == (1, 16, 25)
    assert mask.dtype == torch.bool
    assert int(mask.sum()) == 120
    assert torch.equal(mask, random_pixels((16, 25), 0.3, seed=4))
    assert not torch.equal(mask, random_pixels((16, 25), 0.3, seed=5))
    share = sum(random_pixels((4, 5), 0.4, seed=s).float() for s in range(400)) / 400
    assert isinstance(share, Tensor)
    assert float((share - 0.4).abs().max()) < 0.1  # four standard deviations: no pixel is preferred
    again = torch.Generator().manual_seed(4)
    assert torch.equal(mask, random_pixels((16, 25), 0.3, seed=again))
    assert not torch.equal(mask, random_pixels((16, 25), 0.3, seed=again))  # it moves on


def test_missing_block_lies_where_it_should() -> None:
    mask = missing_block((8, 9), (3, 4), at=(5, 0))
    want = torch.ones(1, 8, 9, dtype=torch.bool)
    want[:, 5:8, 0:4] = False
    assert torch.equal(mask, want)
    places = {tuple((~missing_block((4, 5), (3, 3), seed=s))[0].nonzero()[0].tolist())
              for s in range(100)}
    assert places == {(i, j) for i in range(2) for j in range(3)}


SPACE = Space((3, 4, 4))
REFUSED: dict[str, Callable[[], object]] = {
    "one weight for each of 3 channels, got .2,.": lambda: Greyscale(SPACE, (0.5, 0.5)),
    "not all 0": lambda: Greyscale(SPACE, (0.0, 0.0, 0.0)),
    "real, finite weights": lambda: Greyscale(SPACE, (0.5, float("nan"), 0.0)),
    "a square of R, G and B": lambda: colour_filter("RGBW", (4, 4)),
    "row by row, such as 'RGGB', got 'RGB'": lambda: colour_filter("RGB", (4, 4)),
    "a fraction above 0 and at most 1, got 1.5": lambda: random_pixels((4, 4), 1.5),
    "0.01 of 16 pixels keeps none": lambda: random_pixels((4, 4), 0.01),
    "a block of 1 to .4, 4. pixels, got .5, 1.": lambda: missing_block((4, 4), (5, 1)),
    "a place from 0 to .2, 3., where": lambda: missing_block((4, 4), (2, 1), at=(3, 0)),
}


@pytest.mark.parametrize("message", REFUSED)
def test_refuses(message: str) -> None:
    with pytest.raises(ValueError, match=message):
        REFUSED[message]()
