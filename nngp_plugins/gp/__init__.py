"""Gaussian processes: from a Gram or features and targets to predictions with error bars."""

from ._fit import fit as fit
from ._from_model import from_model as from_model
from ._posterior import DensePosterior as DensePosterior, FeaturePosterior as FeaturePosterior
from ._sides import LeftOut as LeftOut
