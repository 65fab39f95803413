"""Choosing what to measure next: candidates, what particles say of them, and policies."""

from recon.acquisition.candidates import Candidates, Selection, columns, moments, pixels, views
from recon.acquisition.policies import (
    Belief,
    EntrywiseEntropy,
    Fixed,
    GaussianEntropy,
    GreedyVariance,
    MaximumEntropy,
    Policy,
    PosteriorVariance,
    Random,
    choose,
)

__all__ = [
    "Belief",
    "Candidates",
    "EntrywiseEntropy",
    "Fixed",
    "GaussianEntropy",
    "GreedyVariance",
    "MaximumEntropy",
    "Policy",
    "PosteriorVariance",
    "Random",
    "Selection",
    "choose",
    "columns",
    "moments",
    "pixels",
    "views",
]
