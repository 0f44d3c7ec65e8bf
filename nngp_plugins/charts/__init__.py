"""Pictures and tables of arrays: Plotly figures, matplotlib axes, rich tables. No history is known here."""

from ._chart import (
    INK as INK,
    Chart as Chart,
    Line as Line,
    depth_colors as depth_colors,
    distinct_colors as distinct_colors,
    log_ticks as log_ticks,
)
from ._matplotlib import draw as draw
from ._plotly import plotly_figure as plotly_figure, styled as styled
from ._tables import (
    number as number,
    short as short,
    spaced as spaced,
    sparkline as sparkline,
    stacked_table as stacked_table,
)
from ._text import for_plotly as for_plotly, printable as printable
