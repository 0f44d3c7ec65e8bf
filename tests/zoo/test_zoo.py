import numpy as np
import pytest

from zoo.registry import DATASETS, MODELS, get_dataset, get_model


def test_digits_are_split_standardised_and_not_shared():
    digits = get_dataset("digits")
    assert len(digits.train_x) + len(digits.test_x) == 1797
    assert digits.train_x.shape[1:] == (8, 8, 1)
    assert abs(digits.train_x.mean()) < 1e-5
    assert digits.train_x.std() == pytest.approx(1, abs=1e-5)
    train = {image.tobytes() for image in digits.train_x}
    assert sum(image.tobytes() in train for image in digits.test_x) == 0
    assert set(digits.train_y) == set(digits.test_y) == set(range(digits.classes))


def test_probe_is_balanced_and_ordered_by_class():
    digits = get_dataset("digits")
    x, y = digits.probe(100)
    np.testing.assert_array_equal(y, np.repeat(np.arange(10), 10))
    test = {image.tobytes(): label for image, label in zip(digits.test_x, digits.test_y, strict=True)}
    assert [test[image.tobytes()] for image in x] == y.tolist()
    with pytest.raises(ValueError, match="a probe of 600 takes 60 test examples"):
        digits.probe(600)


@pytest.mark.parametrize(
    ("lookup", "message"),
    [
        (lambda: get_model("haiku/mpl", get_dataset("digits")), "unknown model 'haiku/mpl'; did you mean 'haiku/mlp'"),
        (lambda: get_model("torch", get_dataset("digits")), "unknown model 'torch'; did you mean"),
        (lambda: get_dataset("mnist"), "unknown data set 'mnist'; did you mean 'digits'"),
    ],
)
def test_unknown_names_give_the_closest(lookup, message):
    with pytest.raises(ValueError, match=message):
        lookup()


def test_registry_holds_both_networks_in_each_framework():
    assert {tuple(name.split("/")) for name in MODELS} == {
        (framework, network) for framework in ("linen", "nnx", "haiku") for network in ("mlp", "cnn")
    }
    assert set(DATASETS) == {"digits"}
