"""Metrics: numbers from kernels, each as its published formula."""

from ._default import DEFAULT as DEFAULT
from ._default import Metric as Metric
from ._gram import DenseGram as DenseGram
from ._gram import FeatureGram as FeatureGram
from ._gram import Gram as Gram
from ._gram import features as features
from ._similarity import cka as cka
from ._similarity import relative_change as relative_change
from ._spectrum import effective_rank as effective_rank
from ._spectrum import scale as scale
