"""The report of a search as a page: records in, HTML out."""

from nas_jax.page.base import Correlation, Metric, Report, Run, Winner, headline, render

__all__ = ['Correlation', 'Metric', 'Report', 'Run', 'Winner', 'headline', 'render']
