"""The report: one HTML page of a run folder."""

from ._figures import curves as curves, heat_maps as heat_maps
from ._html import write_report as write_report
