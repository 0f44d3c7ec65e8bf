"""The commands of ``nngp-zoo``, a file each."""

# isort: off
from .app import app as app

# Each import registers a command, in the order in which `--help` lists them.
from . import list as list
from . import show as show
from . import track as track
from . import report as report
from . import kernel as kernel
from . import verify as verify
from . import features as features
from . import compare as compare
from . import replay as replay
from . import reproduce as reproduce
from . import coordcheck as coordcheck
from . import scan as scan
from . import sweep as sweep
