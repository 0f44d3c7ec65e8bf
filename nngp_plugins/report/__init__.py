"""What a run shows: findings in words, and one HTML page."""

from ._findings import findings as findings
from ._html import write_report as write_report
