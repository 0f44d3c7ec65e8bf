"""The one form that a model of any framework takes: ``f(params, x, **kwargs)``."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from .._show import facts_html
from .._trees import with_dicts
from .._typing import PyTree
from ._adapter import Adapter, facts_of
from ._arguments import Arguments, check_key, is_array, move_batch
from ._harvest import Harvest, Reduced
from ._layer_names import Layer, select
from ._pool import Pool, Pooled
from ._replay import Reducer, Whole
from ._statistics import warn_of_statistics
from ._summary import Summary


@dataclass(frozen=True)
class ModelFn:
    """A model as a pure function ``f(params, x, *, state=None, rng=None, **kwargs)``.

    :func:`as_model_fn` and the ``from_...`` function of each framework return one. It works under ``jit``, ``grad``
    and ``vmap``. It is frozen and hashable, so it may be a static argument of ``jax.jit``.

    Attributes:
        adapter: the part that knows the framework.
        patterns: patterns of the layers that are the outputs; None for the model's own outputs.
        functions: whether activation functions that follow a layer are layers, too.
        batch_axis: the axis of the batch in the inputs; in the outputs it comes first.
        model_axis: the axis of the batch in what the model takes, if that is another one; see :meth:`batch_first`.
        pooling: how the positions of the outputs are pooled; None for all positions as they are.
    """

    adapter: Adapter
    patterns: tuple[str, ...] | None = None
    functions: bool = False
    batch_axis: int = 0
    model_axis: int | None = None
    pooling: Pool | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.batch_axis, int) or self.batch_axis < 0:
            raise ValueError(f"batch_axis={self.batch_axis!r} must be an axis, such as 1 for (T, N, D), time first.")

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={value}" for name, value in facts_of(self).items())
        return f"ModelFn({shown})"

    def _repr_html_(self) -> str:
        return facts_html("ModelFn", facts_of(self))

    def __call__(
        self, params: PyTree, x: PyTree, *, state: PyTree = None, rng: jax.Array | None = None, **kwargs: Any
    ) -> PyTree:
        """Runs the model and drops the updates of its state.

        Args:
            params: what optax trains. Anything that :meth:`split` takes is accepted and split.
            x: inputs with batch axis 0, or with the ``batch_axis`` that was given to the adapter.
            state: all other persistent values, such as running statistics.
            rng: a key that feeds every stochastic layer. With None the model runs deterministically.
            **kwargs: passed to the model. They override those given to the adapter.

        Returns:
            The model's outputs or, after :meth:`layers`, an ``OrderedDict`` of activations by layer.

        Raises:
            TypeError: ``params`` is a ``TrainState``, or ``rngs`` is passed instead of ``rng``.
            ValueError: the model needs a ``state`` or an ``rng`` that was not given, or a pattern matches no layer.
        """
        if self.patterns is not None:
            layers, _ = self.reduce_layers(Whole(), params, x, state=state, rng=rng, **kwargs)
            return layers.by_name()
        params, x, state = self._checked(params, x, state, rng, kwargs)
        outputs = self.adapter.apply(params, state, rng, self._as_model_takes(x), kwargs)
        if self.batch_axis or self.model_axis:
            axes = iter(self._harvest(params, state, rng, x, kwargs).output_axes)
            outputs = jax.tree.map(lambda y: jnp.moveaxis(y, next(axes) or 0, 0) if is_array(y) else y, outputs)
        if (pool := self.pooling) is None:
            return outputs
        mask = pool.mask_of(x, kwargs, self.batch_axis)
        return jax.tree.map(lambda leaf: pool("output", leaf, mask) if is_array(leaf) else leaf, outputs)

    def batch_first(self, x: PyTree) -> tuple[ModelFn, PyTree]:
        """Returns the same model as a function of inputs with batch axis 0, and the inputs in this form."""
        if not self.batch_axis:
            return self, x
        return replace(self, batch_axis=0, model_axis=self.batch_axis), move_batch(x, self.batch_axis, 0)

    def _as_model_takes(self, x: PyTree) -> PyTree:
        return move_batch(x, 0, self.model_axis) if self.model_axis else x

    def _checked(
        self, params: PyTree, x: PyTree, state: PyTree, rng: Any, kwargs: Mapping[str, Any]
    ) -> tuple[PyTree, PyTree, PyTree]:
        """Returns parameters, inputs and state, after checking the arguments of a call."""
        if "rngs" in kwargs:
            raise TypeError(
                "rngs=... is not an argument of a ModelFn; pass one key as rng=, and each stream gets a key folded "
                "from it."
            )
        check_key(rng)
        params, state = self.variables(params, state)
        return params, with_dicts(x), state

    def _harvest(self, params: PyTree, state: PyTree, rng: Any, x: PyTree, kwargs: dict[str, Any]) -> Harvest:
        def run(params: PyTree, state: PyTree, rng: Any, x: PyTree, kwargs: dict[str, Any]) -> PyTree:
            return self.adapter.tagged(params, state, rng, self._as_model_takes(x), kwargs)

        arguments = Arguments.of(params, state, rng, x, kwargs, self.batch_axis)
        return Harvest(run, arguments, functions=self.functions)

    def init(self, rng: jax.Array, x: PyTree, **kwargs: Any) -> tuple[PyTree, PyTree]:
        """Returns new parameters; a running variance of zero, as that of a single example, gives a warning.

        Args:
            rng: the key that they are drawn from.
            x: inputs as for a call. Their values matter only to a state that is computed from them, such as that of
                Haiku's BatchNorm with ``is_training=True``: pass several real examples there, neither one nor zeros.
            **kwargs: passed to the model, such as ``train=True``. They override those given to the adapter.

        Returns:
            ``(params, state)``; the state is empty for a model that has none.
        """
        params, state = self.adapter.init(rng, with_dicts(x), kwargs)
        warn_of_statistics(state)
        return params, state

    def split(self, model: Any) -> tuple[PyTree, PyTree]:
        """Returns the current values of a model.

        Args:
            model: a live NNX, Equinox or Keras model at any time in training, or a Linen variables dict.

        Returns:
            ``(params, state)`` as :meth:`init` gives them.

        Raises:
            TypeError: ``model`` is none of these, or belongs to another framework.
        """
        parts = self.adapter.split(model)
        if parts is None:
            raise TypeError(
                f"cannot split {type(model).__name__} into params and state; pass a live NNX model to the ModelFn "
                "of from_nnx, or a full variables dict to that of from_linen."
            )
        return parts

    def layers(self, *patterns: str, functions: bool = False) -> ModelFn:
        """Returns the same model with layers as its outputs, those inside ``scan``, ``remat``, ``vmap``, ``jit`` too.

        Args:
            *patterns: :mod:`fnmatch` patterns on the path of a layer, such as ``"Dense_*"``. A pattern that starts
                with ``!``, such as ``"!*dropout*"``, leaves layers out. No patterns select all layers.
            functions: whether activation functions that are called on a layer are layers, too: ``Dense_0/relu``.

        Returns:
            A :class:`ModelFn` whose outputs are ``{"path/of/layer": activation}`` in forward order. A second call gives
            ``name#1``, a tuple ``name:0``, another method ``name.encode``. A scan over layers gives ``blocks/0/up``,
            ``blocks/1/up``, and a scan over time one layer ``(N, T, ...)``. Equal arrays are one layer. The model's own
            output comes last, as ``output``, or as ``:output`` if a layer is called so.

        Example:
            >>> import jax, jax.numpy as jnp, flax.linen as nn, nngp_plugins as nngp
            >>> f = nngp.from_linen(nn.Sequential([nn.Dense(8), nn.relu, nn.Dense(2)]))
            >>> x = jnp.ones((4, 3))
            >>> params, state = f.init(jax.random.key(0), x)
            >>> [(name, y.shape) for name, y in f.layers(functions=True)(params, x).items()]
            [('layers_0', (4, 8)), ('layers_0/relu', (4, 8)), ('layers_2', (4, 2))]
        """
        for pattern in patterns:
            if not isinstance(pattern, str):
                raise TypeError(f"layers({pattern!r}) takes patterns as strings, such as f.layers('Dense_*', 'head').")
        return replace(self, patterns=patterns or ("*",), functions=functions)

    def pool(
        self, how: str | Callable[..., jax.Array] = "mean", *, mask: str | Callable[[PyTree], jax.Array] | None = None
    ) -> ModelFn:
        """Returns the same model with one vector of features for each example, in place of one for each position.

        A kernel compares position with position, so padding counts unless tokens are pooled with a mask.

        Args:
            how: ``"mean"``, ``"first"`` or ``"last"`` of the positions that count, or a function of the output
                ``(N, ..., D)``, and of the mask if there is one. Outputs ``(N, D)`` stay as they are.
            mask: the positions that count: a key of the inputs or a keyword argument, such as ``"attention_mask"``, or
                a function of the inputs, batch first. It is ``(N, T)`` for outputs ``(N, T, ...)``, and zero or False
                at padding. None for all positions: all axes but the first and the last.

        Raises:
            ValueError: ``how`` is another string; in a call, a layer lacks the positions of the mask.
            TypeError: ``mask`` is an array, which would not be cut into batches.

        Example:
            >>> import jax, jax.numpy as jnp, flax.linen as nn, nngp_plugins as nngp
            >>> f = nngp.from_linen(nn.Sequential([nn.Embed(10, 4), nn.Dense(3)]))
            >>> params, state = f.init(jax.random.key(0), tokens := jnp.array([[5, 7, 0, 0], [1, 2, 3, 4]]))
            >>> f.layers("layers_1").pool("mean", mask=lambda tokens: tokens != 0)(params, tokens)["layers_1"].shape
            (2, 3)
        """
        return replace(self, pooling=Pool(how, mask))

    def reduce_layers(
        self,
        reducer: Reducer,
        params: PyTree,
        x: PyTree,
        *,
        state: PyTree = None,
        rng: jax.Array | None = None,
        **kwargs: Any,
    ) -> tuple[Reduced, Summary]:
        """Returns what a reducer makes of each layer where it is computed: in a scan, inside its body.

        So nothing of a layer is stacked but what the reducer makes of it.

        Args:
            reducer: makes something of the output of a layer.
            params: as for a call.
            x: as for a call.
            state: as for a call.
            rng: as for a call.
            **kwargs: as for a call.

        Returns:
            The results, and what :meth:`summary` returns.
        """
        params, x, state = self._checked(params, x, state, rng, kwargs)
        harvest = self._harvest(params, state, rng, x, kwargs)
        layers = select(harvest.layers, harvest.left_out, self.patterns or ("*",))
        summary = self._summary(harvest, layers, params, x, kwargs)
        if self.pooling is not None:
            reducer = Pooled(reducer, self.pooling, self.pooling.mask_of(x, kwargs, self.batch_axis))
        return harvest.reduce(layers, reducer), summary

    def layer_shapes(
        self, params: PyTree, x: PyTree, *, state: PyTree = None, rng: jax.Array | None = None, **kwargs: Any
    ) -> OrderedDict[str, jax.ShapeDtypeStruct]:
        """Returns shape and dtype of each layer's output, in forward order, without running the model."""
        return OrderedDict(self.summary(params, x, state=state, rng=rng, **kwargs).shapes)

    def summary(
        self, params: PyTree, x: PyTree, *, state: PyTree = None, rng: jax.Array | None = None, **kwargs: Any
    ) -> Summary:
        """Returns the layers with their shapes and the cost of their kernels, without running the model.

        ``print`` shows it as a table, with the modules that own parameters and are not seen.

        Example:
            >>> import jax, jax.numpy as jnp, flax.linen as nn, nngp_plugins as nngp
            >>> f = nngp.from_linen(nn.Sequential([nn.Dense(8), nn.relu, nn.Dense(2)]))
            >>> x = jnp.ones((4, 3))
            >>> f.summary(f.init(jax.random.key(0), x)[0], x).flops
            {'layers_0': 256, 'layers_2': 64}
        """
        params, x, state = self._checked(params, x, state, rng, kwargs)
        harvest = self._harvest(params, state, rng, x, kwargs)
        return self._summary(
            harvest, select(harvest.layers, harvest.left_out, self.patterns or ("*",)), params, x, kwargs
        )

    def _summary(self, harvest: Harvest, layers: Sequence[Layer], params: PyTree, x: PyTree, kwargs: Any) -> Summary:
        owners, shapes = self.adapter.owners(params), {layer.name: layer.shape for layer in layers}
        return Summary(
            shapes=shapes if self.pooling is None else self.pooling.shapes(shapes, x, kwargs, self.batch_axis),
            others={layer.name: layer.others for layer in layers if layer.others},
            modules=len({*owners}),
            unseen=harvest.unseen_of(owners),
        )

    def variables(self, params: PyTree, state: PyTree = None) -> tuple[PyTree, PyTree]:
        """Returns parameters and state as plain PyTrees.

        Args:
            params: parameters, which are returned as they are, or anything that :meth:`split` takes.
            state: the state. With None it is taken from ``params``, if that holds one.

        Raises:
            TypeError: ``params`` is a ``TrainState``.
        """
        if hasattr(params, "opt_state") and hasattr(params, "params"):
            raise TypeError(
                f"params is a {type(params).__name__}; pass its .params, and the rest of the model's variables "
                "(such as {'batch_stats': train_state.batch_stats}) as state=."
            )
        parts = self.adapter.split(params)
        if parts is None:
            return params, state
        params, own_state = parts
        return params, own_state if state is None else state
