"""Pictures and the HTML report, from a run folder."""

from ._html import write_report as write_report
