"""Pictures and tables of arrays: Plotly figures, matplotlib axes, rich tables. No history is known here."""

from ._chart import INK as INK
from ._chart import Chart as Chart
from ._chart import Line as Line
from ._chart import depth_colors as depth_colors
from ._chart import distinct_colors as distinct_colors
from ._chart import log_ticks as log_ticks
from ._matplotlib import draw as draw
from ._plotly import plotly_figure as plotly_figure
from ._plotly import styled as styled
from ._tables import number as number
from ._tables import short as short
from ._tables import spaced as spaced
from ._tables import sparkline as sparkline
from ._tables import stacked_table as stacked_table
