"""The families of the zoo's models. This table imports no framework, so that names are checked at once."""

from __future__ import annotations

from dataclasses import dataclass

from .spec import Spec

FRAMEWORKS = ("linen", "nnx", "haiku")
IMAGE, SEQUENCE = Spec((32, 32, 3)), Spec((40, 1))
TOKENS = Spec((64,), dtype="int32", vocabulary=128)


@dataclass(frozen=True)
class Family:
    """One architecture, which each framework has.

    Attributes:
        file: the file in ``zoo/models/<framework>/`` with its builders.
        builder: the function in that file. Its keyword arguments are the knobs of the model.
        takes: the kinds of inputs that it takes, see :attr:`Spec.kind`.
        example: the inputs that it is built for unless the caller names others.
        task: what it is trained for, see :mod:`zoo.tasks`.
        limit: the Gaussian process that it becomes in the limit of infinite width at initialisation, with its source.
        pool: how its last layer pools positions, a name of :meth:`nngp_plugins.ModelFn.pool`.
    """

    file: str
    builder: str
    takes: tuple[str, ...]
    example: Spec
    task: str = "classify"
    limit: str = ""
    pool: str = "mean"

    def check(self, name: str, spec: Spec) -> None:
        """Refuses inputs of another kind.

        Raises:
            ValueError: says what the model takes and what the data are.
        """
        if spec.kind not in self.takes:
            raise ValueError(f"{name} takes {' or '.join(self.takes)} inputs, but the data are {spec}.")


ANY = ("vector", "sequence", "image", "array")
READ = ("tokens", "sequence", "image")
_MLP = "arc-cosine kernels (Cho & Saul 2009; Lee et al. 2018)"
_CNN = "convolutional NNGP (Novak et al. 2019; Garriga-Alonso et al. 2019)"
_RNN = "gated recurrent NNGP (Yang 2019, Tensor Programs I)"
_ATTENTION = "attention NNGP, with many heads (Hron et al. 2020)"

FAMILIES: dict[str, Family] = {
    "mlp": Family("mlp", "mlp", ANY, IMAGE, limit=_MLP),
    "cnn": Family("cnn", "cnn", ("sequence", "image"), IMAGE, limit=_CNN),
    "lenet": Family("cnn", "lenet", ("image",), IMAGE, limit=_CNN),
    "resnet18": Family("resnet", "resnet18", ("image",), IMAGE, limit="batch normalisation (Yang et al. 2019)"),
    "wide-resnet": Family("resnet", "wide_resnet", ("image",), IMAGE, limit="batch normalisation (Yang et al. 2019)"),
    "vit": Family("vit", "vit", ("image",), IMAGE, limit=_ATTENTION),
    "mlp-mixer": Family("mixer", "mlp_mixer", ("image",), IMAGE, limit=_MLP),
    "lstm": Family("recurrent", "lstm", READ, SEQUENCE, limit=_RNN, pool="last"),
    "gru": Family("recurrent", "gru", READ, SEQUENCE, limit=_RNN, pool="last"),
    "transformer": Family("transformer", "transformer", READ, TOKENS, limit=_ATTENTION),
    "char-lm": Family("transformer", "char_lm", ("tokens",), TOKENS, "next token", _ATTENTION),
    "autoencoder": Family("autoencoder", "autoencoder", ANY, IMAGE, "reconstruct", _MLP),
}
