"""Figures and tables a person reads."""

from recon.report.figure import panels
from recon.report.table import comparison, markdown

__all__ = ["comparison", "markdown", "panels"]
