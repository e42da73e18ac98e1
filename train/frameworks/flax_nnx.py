"""Training in JAX with Flax NNX and optax: the whole step is one compiled function of the state."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from numpy.typing import NDArray

from medserve.models import Architecture, Recipe, Task
from train.frameworks import RANDOM, InitialState, Rates, Weights, build, is_trained

REQUIRES = ("jax", "flax", "optax")

# On a CPU this XLA version computes convolutions with YNNPACK by default, most of them on a single thread. With YNNPACK
# restricted to reductions, Eigen computes the convolutions on all cores: 1.4 times as many images per second.
COMPILER_OPTIONS = {"cpu": {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE"}}


class FlaxTrainer:
    """See `train.frameworks.Trainer`."""

    _graph: nnx.GraphDef
    _parameters: nnx.State
    _rest: nnx.State

    def __init__(
        self,
        architecture: Architecture,
        classes: int,
        recipe: Recipe,
        rates: Rates,
        initial: InitialState = RANDOM,
        task: Task = "multi-class",
    ) -> None:
        # XLA uses TF32 on a GPU by default; its error is ten times the limit of a certificate.
        jax.config.update("jax_default_matmul_precision", "float32")
        self._classes = classes
        self._task = task
        self._smoothing = recipe.label_smoothing
        schedule = jnp.array(rates)
        self._optimiser = optax.adamw(
            lambda step: schedule[step], b1=0.9, b2=0.999, eps=1e-8, weight_decay=recipe.weight_decay, mask=_has_decay
        )
        network, self._canonical = build("flax_nnx", architecture, classes, recipe, initial)
        self._class_weights = jnp.array(initial.loss_weights(classes, task))
        self.parameters = sum(value.size for value in jax.tree.leaves(nnx.state(network, nnx.Param)))

        def path_is_trained(path: tuple[str | int, ...]) -> bool:
            return is_trained(architecture, recipe, ".".join(map(str, path)))

        self._trained = nnx.All(nnx.Param, lambda path, _: path_is_trained(path))
        # A frozen layer updates no batch-norm statistics and applies no drop-out.
        for path, module in nnx.iter_modules(network):
            inner = [(*path, *name) for name, _ in nnx.to_flat_state(nnx.state(module, nnx.Param))]
            if inner and not any(map(path_is_trained, inner)):
                module.eval()
        self._split(network)
        self._moments = self._optimiser.init(self._parameters)
        network.eval()
        self._evaluation = nnx.graphdef(network)
        options = COMPILER_OPTIONS.get(jax.default_backend())
        # Only the step holds the state, so XLA may write the new arrays into the memory of the old ones.
        self._compiled_step = jax.jit(self._next, donate_argnums=(0, 1, 2), compiler_options=options)
        self._compiled_predict = jax.jit(self._probabilities, compiler_options=options)

    def step(self, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> float:
        self._parameters, self._rest, self._moments, loss = self._compiled_step(
            self._parameters, self._rest, self._moments, images, labels
        )
        return float(loss)

    def predict(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        return np.array(self._compiled_predict(self._parameters, self._rest, images))

    def weights(self) -> Weights:
        return self._canonical.read(self._network())

    def state(self) -> dict[str, NDArray[Any]]:
        return {name: np.array(value) for name, value in _named(self._resumable())}

    def restore(self, weights: Weights, state: dict[str, NDArray[Any]]) -> None:
        network = self._network()
        self._canonical.write(network, weights)
        self._split(network)
        fresh = self._resumable()
        restored = [jnp.array(state[name]) for name, _ in _named(fresh)]
        self._moments, draws = jax.tree.unflatten(jax.tree.structure(fresh), restored)
        self._rest = nnx.merge_state(self._rest, draws)

    def _network(self) -> nnx.Module:
        return nnx.merge(self._graph, self._parameters, self._rest, copy=True)

    def _split(self, network: nnx.Module) -> None:
        """Split a network: graph, trained parameters, and the rest (frozen ones, batch statistics, random state)."""
        self._graph, self._parameters, self._rest = nnx.split(network, self._trained, ...)

    def _next(
        self, parameters: nnx.State, rest: nnx.State, moments: optax.OptState, images: jax.Array, labels: jax.Array
    ) -> tuple[nnx.State, nnx.State, optax.OptState, jax.Array]:
        def loss_of(parameters: nnx.State) -> tuple[jax.Array, nnx.State]:
            network = nnx.merge(self._graph, parameters, rest, copy=True)
            loss = self._loss(network(images), labels)
            return loss, nnx.state(network, nnx.Not(self._trained))

        (loss, rest), gradients = jax.value_and_grad(loss_of, has_aux=True)(parameters)
        updates, moments = self._optimiser.update(gradients, moments, parameters)
        return optax.apply_updates(parameters, updates), rest, moments, loss

    def _loss(self, logits: jax.Array, labels: jax.Array) -> jax.Array:
        if self._task == "multi-label":
            smoothed = labels * (1 - self._smoothing) + self._smoothing / 2
            losses = optax.sigmoid_binary_cross_entropy(logits, smoothed)
            return (losses * jnp.where(labels == 1, self._class_weights[1], self._class_weights[0])).mean()
        targets = optax.smooth_labels(jax.nn.one_hot(labels, self._classes), self._smoothing)
        return (optax.softmax_cross_entropy(logits, targets) * self._class_weights[labels]).mean()

    def _probabilities(self, parameters: nnx.State, rest: nnx.State, images: jax.Array) -> jax.Array:
        logits = nnx.merge(self._evaluation, parameters, rest)(images)
        return jax.nn.sigmoid(logits) if self._task == "multi-label" else jax.nn.softmax(logits)

    def _resumable(self) -> tuple[optax.OptState, nnx.State]:
        """The optimiser's state, and how often each drop-out layer has drawn; its key follows from the seed."""
        return self._moments, nnx.filter_state(self._rest, nnx.RngCount)


def _named(tree: optax.OptState) -> list[tuple[str, jax.Array]]:
    """Every array of a tree, step counters included, with its path."""
    pairs = jax.tree.leaves_with_path(tree)
    return [(jax.tree_util.keystr(path, simple=True, separator="."), value) for path, value in pairs]


def _has_decay(parameters: nnx.State) -> nnx.State:
    """Weight decay applies to matrices and kernels, not to one-dimensional parameters (batch norm, biases)."""
    return jax.tree.map(lambda value: value.ndim > 1, parameters)


create = FlaxTrainer
