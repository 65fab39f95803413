"""Phase retrieval: only the magnitude of a Fourier transform is measured."""

import torch
from torch import Tensor

from recon.operators.base import Operator
from recon.space import Space


class PhaseRetrieval(Operator):
    """``y[l] = |F(masks[l] x)|`` or its square: diffraction patterns, coded or plain.

    ``F`` is the orthonormal Fourier transform of the spatial dimensions on a grid ``oversampling``
    times as large, zeros beyond the image, zero frequency first. Without masks, ``x`` and its
    mirrored conjugate, its shifts within the grid and its multiples by a phase measure the same.

    ``vjp`` is exact: that of ``|z|`` is ``v z / |z|``, and 0 where ``z = 0`` and it has no
    derivative.

    Parameters
    ----------
    space
        Images of one channel, real or complex.
    masks
        What is in the beam for each pattern, complex or real, ``(patterns, *spatial)``;
        ``random_phases`` draws diffusers. None for one pattern with nothing in the beam.
    oversampling
        Whole number; 2 makes the patterns determine the image's autocorrelation.
    intensity
        Measure ``|.|^2``, which detectors do, in place of its root.

    Measurements are real, ``(*batch, patterns, *grid)``.

    Examples
    --------
    >>> A = PhaseRetrieval(Space((1, 8, 8)), random_phases(4, (8, 8)))
    >>> A(torch.ones(1, 8, 8)).shape
    torch.Size([4, 8, 8])
    """

    items = ()
    masks: Tensor | None

    def __init__(self, space: Space, masks: Tensor | None = None, oversampling: int = 1,
                 intensity: bool = False) -> None:
        sizes = space.shape[1:]
        if space.shape[0] != 1 or not sizes:
            raise ValueError("PhaseRetrieval: want images of one channel (1, *spatial), "
                             f"got {space.shape}")
        if not isinstance(oversampling, int) or oversampling < 1:
            raise ValueError("PhaseRetrieval: want a whole oversampling >= 1, "
                             f"got {oversampling}")
        if masks is not None:
            masks = torch.as_tensor(masks)
            if masks.ndim != len(sizes) + 1 or tuple(masks.shape[1:]) != sizes or not len(masks):
                raise ValueError(f"PhaseRetrieval: want masks (patterns, *{sizes}), "
                                 f"got {tuple(masks.shape)}")
            if not bool(torch.isfinite(masks).all()):
                raise ValueError("PhaseRetrieval: want finite masks, got NaN or infinity")
        grid = tuple(oversampling * n for n in sizes)
        patterns = 1 if masks is None else len(masks)
        super().__init__(space, Space((patterns, *grid), space.dtype.to_real()))
        self.intensity = intensity
        self._axes = tuple(range(-len(sizes), 0))
        self.register_buffer("masks", masks)

    def forward(self, x: Tensor) -> Tensor:
        z = self.field(x)
        return z.real.square() + z.imag.square() if self.intensity else z.abs()

    def vjp(self, x: Tensor, v: Tensor) -> Tensor:
        z = self.field(x)
        pull: Tensor = torch.fft.ifftn(v * (2 * z if self.intensity else z.sgn()),
                                       dim=self._axes, norm="ortho")
        for axis, n in zip(self._axes, self.domain.shape[1:], strict=True):
            pull = pull.narrow(axis, 0, n)
        masks = self._masks(pull)
        if masks is not None:
            pull = (masks.conj() * pull).sum(-len(self.domain.shape), keepdim=True)
        return pull if self.domain.is_complex else pull.real

    def field(self, x: Tensor) -> Tensor:
        """The complex field ``F(masks[l] x)`` behind the detector."""
        masks, grid = self._masks(x), self.range.shape[1:]
        x = x if masks is None else masks * x
        z: Tensor = torch.fft.fftn(x, s=grid, dim=self._axes, norm="ortho")
        return z

    def _masks(self, like: Tensor) -> Tensor | None:
        if self.masks is None:
            return None
        kind = like.dtype.to_complex() if self.masks.is_complex() else like.dtype.to_real()
        return self.masks.to(like.device, kind)


def random_phases(patterns: int, size: tuple[int, ...],
                  seed: int | torch.Generator = 0) -> Tensor:
    """Diffusers, ``(patterns, *size)``: complex numbers of magnitude 1 and uniform phase."""
    if patterns < 1 or not size or min(size) < 1:
        raise ValueError(f"random_phases: want patterns and sizes >= 1, got {patterns} and {size}")
    generator = seed if isinstance(seed, torch.Generator) else torch.Generator().manual_seed(seed)
    phase = 2 * torch.pi * torch.rand(patterns, *size, generator=generator, dtype=torch.float64)
    return torch.polar(torch.ones_like(phase), phase).to(torch.get_default_dtype().to_complex())
