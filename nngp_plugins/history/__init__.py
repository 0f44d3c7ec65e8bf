"""What a run left: its rows, its folder, its kept kernels; and several runs side by side."""

from ._compare import Comparison as Comparison, compare as compare
from ._curves import (
    first_and_last as first_and_last,
    history_chart as history_chart,
    so_far as so_far,
    title_of as title_of,
)
from ._files import LAST as LAST, NEXT as NEXT, REFERENCE as REFERENCE, in_order as in_order, write_npz as write_npz
from ._history import History as History
from ._kept import KeptKernels as KeptKernels, checksums as checksums
from ._rows import (
    DIVERGED as DIVERGED,
    KEPT_CHECKSUMS as KEPT_CHECKSUMS,
    LISTS as LISTS,
    PREFIX as PREFIX,
    REFERENCE_OF as REFERENCE_OF,
    Row as Row,
    is_own_name as is_own_name,
    key_of as key_of,
)
from ._run_folder import RunFolder as RunFolder, description as description
from ._stored_run import StoredRun as StoredRun
