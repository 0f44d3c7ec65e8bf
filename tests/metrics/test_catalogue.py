"""A metric is one function and one entry: trackers, charts and the page of the docs read the rest from the entry."""

import runpy
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.jaxprs import equations

from nngp_plugins import KernelTracker, metrics
from nngp_plugins.metrics import DEFAULT, DenseGram, FeatureGram, Velocity, catalogue, entry_of, needs_spectrum

MAKE_METRICS = Path(__file__).parents[2] / "docs" / "make_metrics.py"
FACTS = {
    "formula": "max K_ij",
    "range": "≥ 0",
    "cost": "N² D",
    "tells": "how large the features of an example are",
    "misleads": "a single outlier decides it",
}
TARGETS = np.arange(12) % 3
CLASSES = ["target_alignment", "class_separation", "regression_accuracy", "log_marginal_likelihood"]


@pytest.fixture
def largest_entry():
    """A metric that a user registers from outside."""

    @metrics.entry(title="Largest entry", log_axis=True, tracked=True, **FACTS)
    def largest_entry(a):
        """The largest entry.

        Source: nobody published it.
        """
        return a.dense().max()

    yield largest_entry
    metrics.unregister("largest_entry")


class TestAMetricFromOutside:
    def test_is_in_the_catalogue(self, largest_entry):
        known = entry_of("largest_entry")
        assert catalogue()[-1] is known
        assert known.metric is largest_entry
        assert (known.title, known.log_axis, known.source) == ("Largest entry", True, "nobody published it")
        assert not known.relative_to_reference
        assert not known.needs_spectrum

    def test_is_unchanged(self, largest_entry):
        assert float(largest_entry(DenseGram(jnp.diag(jnp.array([1.0, 7.0]))))) == 7

    def test_is_tracked(self, largest_entry):
        assert list(metrics.default_metrics()) == [*DEFAULT, "largest_entry"]
        probe = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
        tracker = KernelTracker(lambda w, x: {"hidden": w * x}, probe, metrics=metrics.default_metrics())
        tracker(0, 1.0)
        tracker(1, 3.0)
        tracker.close()
        largest = (probe @ probe.T).max() / 3
        np.testing.assert_allclose(tracker.history.metric("largest_entry")[:, 0], [largest, 9 * largest], rtol=1e-5)

    def test_is_on_the_page(self, largest_entry):
        page = runpy.run_path(str(MAKE_METRICS))["page"]()
        section = page.partition("\n## largest_entry\n")[2]
        assert "- **Title in charts**: Largest entry, on a logarithmic axis.\n" in section
        assert "- **Tracked by default**: yes.\n" in section
        assert "- **Needs**: only kernels.\n" in section
        assert "- **Source**: nobody published it.\n" in section

    def test_of_targets_gets_them(self):
        def of_targets(a, y):
            return a.trace() * len(y)

        metrics.entry(title="Of targets", needs_targets=True, tracked=True, **FACTS)(of_targets)
        try:
            assert "of_targets" not in metrics.default_metrics()
            tracked = metrics.default_metrics(TARGETS)
            assert list(tracked) == [*DEFAULT, *CLASSES, "of_targets"]
            assert float(tracked["of_targets"](DenseGram(jnp.eye(12)), None)) == 144
        finally:
            metrics.unregister("of_targets")

    def test_may_be_defined_again_but_not_twice(self, largest_entry):
        again = metrics.entry(title="Largest entry, again", **FACTS)
        again(largest_entry)
        assert entry_of("largest_entry").title == "Largest entry, again"

        def cka(a, b):
            return a.trace()

        told = r"the catalogue already has a metric 'cka', from nngp_plugins\.metrics\._similarity; choose another name"
        with pytest.raises(ValueError, match=told):
            metrics.entry(title="Mine", **FACTS)(cka)
        assert entry_of("cka").metric is metrics.cka

    def test_needs_all_facts(self):
        with pytest.raises(TypeError, match="missing 1 required positional argument: 'formula'"):
            metrics.entry(title="Mine", **{k: v for k, v in FACTS.items() if k != "formula"})(lambda a: a)
        with pytest.raises(TypeError, match="unexpected keyword argument 'colour'"):
            metrics.entry(title="Mine", colour="red", **FACTS)(lambda a: a)


def test_names_and_order_are_those_that_run_folders_store():
    names = "cka relative_change kernel_distance kernel_velocity scale effective_rank participation_ratio stable_rank"
    assert list(DEFAULT) == list(metrics.default_metrics()) == [*names.split(), "power_law_exponent"]
    assert list(metrics.default_metrics(TARGETS)) == [*DEFAULT, *CLASSES]
    assert list(metrics.default_metrics(TARGETS + 0.5)) == [*DEFAULT, "target_alignment", "log_marginal_likelihood"]


def test_facts_of_the_entries():
    def named(fact):
        return {known.name for known in catalogue() if getattr(known, fact)}

    assert all(known.title for known in catalogue())
    assert len({known.title for known in catalogue()}) == len(catalogue())
    changes = {"relative_change", "kernel_distance", "kernel_velocity"}
    assert named("log_axis") == changes | {"scale", "class_separation"}
    assert named("relative_to_reference") & set(DEFAULT) == changes | {"cka"}
    assert named("needs_targets") == {*CLASSES, "class_block_means", "neural_collapse"}
    assert named("needs_classes") == named("needs_targets") - {"target_alignment", "log_marginal_likelihood"}


def test_an_unknown_name_has_no_entry():
    assert entry_of("loss") is None
    with pytest.raises(KeyError, match="loss"):
        metrics.unregister("loss")


ARGUMENTS = {
    "centered_kernel_velocity": {"steps": 3},
    "eigenvector_overlap": {"k": 2},
    "power_law_exponent": {"window": (1, 5)},
    "cka_matrix": {},
    "minibatch_cka_matrix": {},
}


every_metric = pytest.mark.parametrize("known", catalogue(), ids=lambda known: known.name)


def value(known, gram, other):
    """The metric of a Gram, or of two, with the arguments that it asks for."""
    grams = (gram, other) if known.relative_to_reference else (gram,)
    if known.name.endswith("cka_matrix"):
        grams = ([([gram], [other])],) if known.name.startswith("minibatch") else ([gram], [other])
    targets = {"y": TARGETS} if known.needs_targets else {}
    return known.metric(*grams, **targets, **ARGUMENTS.get(known.name, {}))


@every_metric
def test_an_entry_knows_whether_its_metric_reads_the_eigenvalues(known):
    """The program of a metric of a Gram with eigenvalues takes them as an input, unless nothing reads them."""

    def run(kernel, eigenvalues):
        gram = DenseGram(kernel, kernel, eigenvalues)
        return value(known, gram, gram)

    inputs = jax.jit(run).lower(jnp.eye(12), jnp.ones(12)).as_text().partition("@main(")[2].partition(" -> ")[0]
    assert known.needs_spectrum == ("tensor<12xf32>" in inputs)


@every_metric
@pytest.mark.parametrize("form", [FeatureGram, lambda phi: FeatureGram(phi).by_entries()], ids=["features", "dense"])
def test_a_metric_is_one_program_at_full_precision(known, form):
    """It asks nothing of the host, and no product rounds to TF32, which accelerators do by default."""
    steps = list(equations(jax.make_jaxpr(lambda a, b: value(known, form(a), form(b)))(*jnp.ones((2, 12, 5)))))
    assert not [step for step in steps if "callback" in step.primitive.name]
    products = [step.params["precision"] for step in steps if step.primitive.name == "dot_general"]
    assert products == [(jax.lax.Precision.HIGHEST,) * 2] * len(products)
    # of narrow features, nothing has an entry for each pair of examples
    pairs = [step for step in steps for out in step.outvars if out.aval.shape[-2:] == (12, 12)]
    assert not pairs or form is not FeatureGram or "N²" in known.cost or known.name.endswith("cka_matrix")


class TestNeedsSpectrum:
    @pytest.mark.parametrize("name", [*DEFAULT, *CLASSES])
    def test_default_metrics(self, name):
        spectral = {"effective_rank", "stable_rank", "power_law_exponent"}
        assert needs_spectrum({name: metrics.default_metrics(TARGETS)[name]}) == (name in spectral)

    @pytest.mark.parametrize(
        ("metric", "needed"),
        [
            (partial(metrics.cka, debiased=False), False),
            (Velocity(partial(metrics.kernel_distance, center=True)), False),
            (partial(partial(metrics.effective_rank), of="singular_values"), True),
            (Velocity(lambda a, b: a.trace()), True),
            (lambda a, b: a.trace(), True),
        ],
        ids=["partial", "velocity of a partial", "spectral partial", "velocity of an unknown one", "unknown"],
    )
    def test_wrappers(self, metric, needed):
        assert needs_spectrum({"cka": metrics.cka, "mine": metric}) == needed

    def test_of_none(self):
        assert not needs_spectrum({})
