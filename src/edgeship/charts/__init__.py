"""Server-side SVG charts, the same for dashboard and HTML report: pure functions from figures to escaped markup.

Every chart is a ``<figure>``: a sentence with the finding, an SVG (``role=img`` with title and desc), and a table with
every number under ``<details>``. Text keeps its size at every width, since positions are percentages; no script, no
inline style, so a strict content-security policy holds. A page includes :data:`STYLESHEET` once.
"""

from edgeship.charts.bars import Segment, stacked_bar, version_bar
from edgeship.charts.confusion import Confusion, confusion_matrix, moved_figure
from edgeship.charts.curves import BandPoint, Curve, difference_band, ecdf_plot, sparkline
from edgeship.charts.figures import Unit, format_interval, format_value
from edgeship.charts.frame import SWATCHES
from edgeship.charts.heatmap import HeatRow, heat_map
from edgeship.charts.histogram import histogram_pair
from edgeship.charts.intervals import IntervalRow, interval_plot
from edgeship.charts.markup import Child, Markup, element, fragment
from edgeship.charts.rail import Phase, phase_rail
from edgeship.charts.ranking import RankedBar, ranked_bars
from edgeship.charts.scatter import Axis, ScatterPoint, scatter_plot
from edgeship.charts.stylesheet import STYLESHEET

__all__ = [
    "STYLESHEET",
    "SWATCHES",
    "Axis",
    "BandPoint",
    "Child",
    "Confusion",
    "Curve",
    "HeatRow",
    "IntervalRow",
    "Markup",
    "Phase",
    "RankedBar",
    "ScatterPoint",
    "Segment",
    "Unit",
    "confusion_matrix",
    "difference_band",
    "ecdf_plot",
    "element",
    "format_interval",
    "format_value",
    "fragment",
    "heat_map",
    "histogram_pair",
    "interval_plot",
    "moved_figure",
    "phase_rail",
    "ranked_bars",
    "scatter_plot",
    "sparkline",
    "stacked_bar",
    "version_bar",
]
