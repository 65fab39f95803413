"""How large an operator is: its squared norm for each item of a batch."""

import torch
from torch import Tensor

from recon.operators.base import LinearOperator, Operator


def squared_norm(operator: Operator, x: Tensor, iterations: int = 20) -> Tensor:
    """``||A||^2``, or ``||J(x)||^2`` where A is not linear, of each item of ``x``, ``(*batch,)``.

    Power iteration on ``J^H J``: a little low, by a few per cent where the largest singular values
    lie close together. ``x`` is ``(*batch, *operator.domain.shape)``; for a linear operator only
    its batch, precision and device count. Every item starts from the same vector and is normalised
    by itself.
    """
    batch, dims = operator.domain.batch_of(x), tuple(range(-len(operator.domain.shape), 0))
    generator = torch.Generator().manual_seed(0)
    v = operator.domain.randn(generator=generator, dtype=x.dtype).to(x.device).expand_as(x)
    norm = torch.ones((), dtype=x.dtype.to_real(), device=x.device)
    for _ in range(iterations):
        v = v / torch.where(norm > 0, norm, 1)
        v = operator.normal(v) if isinstance(operator, LinearOperator) else operator.vjp(
            x, pushed(operator, x, v))
        norm = torch.linalg.vector_norm(v, dim=dims, keepdim=True)
    return norm.reshape(norm.shape[: norm.ndim - len(dims)]).expand(batch)


def pushed(operator: Operator, x: Tensor, v: Tensor) -> Tensor:
    """``J(x) v``, as the derivative of ``w -> J(x)^H w``."""
    with torch.inference_mode(False), torch.enable_grad():
        x = x.clone().detach().requires_grad_()
        out = operator(x)
        w = torch.zeros_like(out).requires_grad_()
        (pulled,) = torch.autograd.grad(out, x, w, create_graph=True)
        (pushed,) = torch.autograd.grad(pulled, w, v.clone())
    return pushed
