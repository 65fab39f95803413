"""What moves the weights: Muon for inner kernels, AdamW for the ends, a falling rate."""

import math
from typing import Any

import torch
from torch import Tensor, nn


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
            update = orthogonalised(p.grad.lerp(v, self.momentum).flatten(1))
            p.mul_(1 - 0.01 * rate)
            # the root of the larger side gives updates the size of Adam's
            p.add_(update.view_as(p), alpha=-rate * 0.2 * math.sqrt(max(update.shape)))


def orthogonalised(matrix: Tensor) -> Tensor:
    """About ``U V^T`` of ``matrix = U S V^T``, by five quintic Newton-Schulz steps."""
    rows, columns = matrix.shape
    g = matrix if rows <= columns else matrix.T
    if g.is_cuda:
        g = g.bfloat16()
    size = g.norm()
    g = g / torch.where(size > 0, size, 1)
    for _ in range(5):
        gram = g @ g.T
        g = 3.4445 * g + (-4.7750 * gram + 2.0315 * gram @ gram) @ g
    return (g if rows <= columns else g.T).to(matrix.dtype)


class Optimiser:
    """Muon for all kernels but the first and the last layer's, which stay with AdamW."""

    def __init__(self, network: nn.Module) -> None:
        self.parameters = list(network.parameters())
        self.muon = Muon(self.parameters[1:-1])
        self.adam = torch.optim.AdamW([self.parameters[0], self.parameters[-1]],
                                      betas=(0.9, 0.98), weight_decay=0.0)

    def step(self, rate: float) -> None:
        """Clip the gradient to a norm of one, then move."""
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for group in self.adam.param_groups:
            group["lr"] = rate
        self.adam.step()
        self.muon.step(rate)

    def state_dict(self) -> dict[str, Any]:
        return {"adam": self.adam.state_dict(), "velocity": self.muon.velocity}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.adam.load_state_dict(state["adam"])
        for mine, its in zip(self.muon.velocity, state["velocity"], strict=True):
            mine.copy_(its)


def learning_rate(step: int, steps: int, peak: float, decay: float) -> float:
    """Warm up over 150 steps, hold, then fall as one minus a square root over the last part."""
    begun = (step - (1 - decay) * steps) / (decay * steps)
    return peak * min(1.0, (step + 1) / 150) * (1 - math.sqrt(min(max(begun, 0.0), 1.0)))
