"""Figures and tables a person reads."""

from recon.report.figure import grid, panels
from recon.report.table import comparison, markdown

__all__ = ["comparison", "grid", "markdown", "panels"]
