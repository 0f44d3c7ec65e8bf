"""What a run left: its rows, its folder, its kept kernels; and several runs side by side."""

from ._compare import Comparison as Comparison
from ._compare import compare as compare
from ._curves import first_and_last as first_and_last
from ._curves import history_chart as history_chart
from ._history import History as History
from ._kept import KeptKernels as KeptKernels
from ._rows import DIVERGED as DIVERGED
from ._rows import PREFIX as PREFIX
from ._rows import Row as Row
from ._rows import is_own_name as is_own_name
from ._rows import key_of as key_of
from ._run_folder import LAST as LAST
from ._run_folder import NEXT as NEXT
from ._run_folder import REFERENCE as REFERENCE
from ._run_folder import RunFolder as RunFolder
from ._run_folder import description as description
from ._stored_run import StoredRun as StoredRun
