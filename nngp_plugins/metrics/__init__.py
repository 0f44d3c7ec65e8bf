"""Metrics: numbers from kernels, each as its published formula."""

from ._bootstrap import Bootstrapped as Bootstrapped, bootstrap as bootstrap
from ._catalogue import (
    Entry as Entry,
    Metric as Metric,
    catalogue as catalogue,
    entry as entry,
    entry_of as entry_of,
    unregister as unregister,
)
from ._dense import DenseGram as DenseGram
from ._features import FeatureGram as FeatureGram
from ._gram import Gram as Gram
from ._shared import rows_of as rows_of
from ._stacked import (
    OfStep as OfStep,
    Product as Product,
    eigenvalues as eigenvalues,
    grams_of_products as grams_of_products,
    product_from_first as product_from_first,
    stacked_grams as stacked_grams,
    undivided as undivided,
    with_eigenvalues as with_eigenvalues,
)
from ._streamed import StreamedGram as StreamedGram
from ._targets import labels_of as labels_of
from ._to_grams import features as features, gram_of as gram_of

# isort: off
# Each import registers its metrics. The catalogue and the logs of a tracker keep this order, which run folders store.
from ._similarity import alignment as alignment
from ._similarity import bures_distance as bures_distance
from ._similarity import cka as cka
from ._change import kernel_distance as kernel_distance
from ._change import relative_change as relative_change
from ._velocity import Velocity as Velocity
from ._velocity import centered_kernel_velocity as centered_kernel_velocity
from ._gulp import gulp as gulp
from ._distances import distance_correlation as distance_correlation
from ._distances import mutual_knn as mutual_knn
from ._distances import rsa as rsa
from ._spread import effective_rank as effective_rank
from ._spread import participation_ratio as participation_ratio
from ._spread import scale as scale
from ._spread import stable_rank as stable_rank
from ._spread import von_neumann_entropy as von_neumann_entropy
from ._spectrum import condition_number as condition_number
from ._spectrum import eigenvector_overlap as eigenvector_overlap
from ._spectrum import power_law_exponent as power_law_exponent
from ._spectrum import spectrum as spectrum
from ._classes import class_block_means as class_block_means
from ._classes import class_separation as class_separation
from ._classes import target_alignment as target_alignment
from ._neural_collapse import neural_collapse as neural_collapse
from ._regression import log_marginal_likelihood as log_marginal_likelihood
from ._regression import regression_accuracy as regression_accuracy
from ._many import cka_matrix as cka_matrix
from ._many import minibatch_cka_matrix as minibatch_cka_matrix
from ._permutation import permutation_test as permutation_test

# isort: on
from ._tracked import (
    DEFAULT as DEFAULT,
    default_metrics as default_metrics,
    evaluate as evaluate,
    evaluate_layer as evaluate_layer,
    identity_of as identity_of,
    is_in_units_of_kernel as is_in_units_of_kernel,
    needs_spectrum as needs_spectrum,
    of_targets as of_targets,
)
