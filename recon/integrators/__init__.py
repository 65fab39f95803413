"""Noise schedules, integrators and the loop that drives them."""

from recon.integrators import schedules
from recon.integrators.base import DDIM, Euler, Integrator, Step, integrate

__all__ = ["DDIM", "Euler", "Integrator", "Step", "integrate", "schedules"]
