"""Charts as SVG, rendered on the server without scripts. Each has a text alternative and a table of its figures.

Horizontal coordinates are percentages and vertical ones pixels, so that a chart fills any width while its text keeps
its size. Series differ in dash and mark as well as in colour.
"""

from gateway.dashboard.charts.line import Series, line_chart, sparkline
from gateway.dashboard.charts.scatter import Bin, Spot, calibration_chart, scatter_chart
from gateway.dashboard.charts.strip import Part, share_bar, whisker

__all__ = [
    "Bin", "Part", "Series", "Spot", "calibration_chart", "line_chart", "scatter_chart", "share_bar", "sparkline",
    "whisker",
]  # fmt: skip
