"""Training in JAX: Flax NNX and optax, the whole step one compiled function of state."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from medserve import plugins
from medserve.spec import Architecture, Recipe
from train.frameworks import DRAWN, Begin, first_weights, learns

REQUIRES = ("jax", "flax", "optax")

# On a CPU this XLA hands convolutions to YNNPACK by default, which runs most of this network's on one thread, whatever
# the number of cores. Leaving YNNPACK the reductions only sends them to Eigen, which uses all: 1.4 times the images.
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
        learning_rates: NDArray[np.float32],
        begin: Begin,
    ) -> None:
        # XLA's default on a GPU is TF32; every runtime is held to these scores ten times closer than that.
        jax.config.update("jax_default_matmul_precision", "float32")
        build = plugins.load(f"train.models.{architecture.family}", "flax_nnx").build
        self._canonical = plugins.load("train.models.canonical", "flax_nnx")
        self._classes = classes
        self._smoothing = recipe.label_smoothing
        rates = jnp.array(learning_rates)
        self._optimiser = optax.adamw(
            lambda step: rates[step], b1=0.9, b2=0.999, eps=1e-8, weight_decay=recipe.weight_decay, mask=_decays
        )
        network = build(architecture, classes, recipe.seed, recipe.hidden, recipe.drop_out)
        self._canonical.write(network, first_weights(self._canonical.read(network), begin, architecture))
        weights = np.ones(classes, np.float32) if begin.class_weights is None else begin.class_weights
        self._class_weights = jnp.array(weights)
        self.parameters = sum(value.size for value in jax.tree.leaves(nnx.state(network, nnx.Param)))

        def is_trained(path: tuple[str | int, ...]) -> bool:
            return learns(architecture, recipe, ".".join(map(str, path)))

        self._trained = nnx.All(nnx.Param, lambda path, _: is_trained(path))
        # What does not learn stays as it is: no statistics, no drop-out.
        for path, module in nnx.iter_modules(network):
            inner = [(*path, *name) for name, _ in nnx.to_flat_state(nnx.state(module, nnx.Param))]
            if inner and not any(map(is_trained, inner)):
                module.eval()
        self._split(network)
        self._moments = self._optimiser.init(self._parameters)
        network.eval()
        self._evaluation = nnx.graphdef(network)
        options = COMPILER_OPTIONS.get(jax.default_backend())
        # The step owns its state: the old arrays are given up, and XLA writes the new ones into them.
        self._compiled_step = jax.jit(self._next, donate_argnums=(0, 1, 2), compiler_options=options)
        self._compiled_predict = jax.jit(self._probabilities, compiler_options=options)

    def step(self, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> float:
        self._parameters, self._rest, self._moments, loss = self._compiled_step(
            self._parameters, self._rest, self._moments, images, labels
        )
        return float(loss)

    def predict(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        return np.array(self._compiled_predict(self._parameters, self._rest, images))

    def weights(self) -> dict[str, NDArray[np.float32]]:
        return self._canonical.read(nnx.merge(self._graph, self._parameters, self._rest, copy=True))

    def save(self, folder: Path) -> None:
        save_file(self.weights(), folder / "weights.safetensors")
        state = {name: np.array(value) for name, value in _named(self._resumable())}
        save_file(state, folder / "resume.safetensors")

    def restore(self, folder: Path) -> None:
        network = nnx.merge(self._graph, self._parameters, self._rest, copy=True)
        self._canonical.write(network, load_file(folder / "weights.safetensors"))
        self._split(network)
        state = load_file(folder / "resume.safetensors")
        fresh = self._resumable()
        restored = [jnp.array(state[name]) for name, _ in _named(fresh)]
        self._moments, draws = jax.tree.unflatten(jax.tree.structure(fresh), restored)
        self._rest = nnx.merge_state(self._rest, draws)

    def _split(self, network: nnx.Module) -> None:
        """Take a network apart into its graph, its trained numbers, and the rest: batch statistics, random state."""
        self._graph, self._parameters, self._rest = nnx.split(network, self._trained, ...)

    def _next(
        self, parameters: nnx.State, rest: nnx.State, moments: optax.OptState, images: jax.Array, labels: jax.Array
    ) -> tuple[nnx.State, nnx.State, optax.OptState, jax.Array]:
        def loss_of(parameters: nnx.State) -> tuple[jax.Array, nnx.State]:
            network = nnx.merge(self._graph, parameters, rest, copy=True)
            targets = optax.smooth_labels(jax.nn.one_hot(labels, self._classes), self._smoothing)
            losses = optax.softmax_cross_entropy(network(images), targets)
            loss = (losses * self._class_weights[labels]).mean()
            return loss, nnx.state(network, nnx.Not(self._trained))

        (loss, rest), gradients = jax.value_and_grad(loss_of, has_aux=True)(parameters)
        updates, moments = self._optimiser.update(gradients, moments, parameters)
        return optax.apply_updates(parameters, updates), rest, moments, loss

    def _probabilities(self, parameters: nnx.State, rest: nnx.State, images: jax.Array) -> jax.Array:
        return jax.nn.softmax(nnx.merge(self._evaluation, parameters, rest)(images))

    def _resumable(self) -> tuple[optax.OptState, nnx.State]:
        """The optimiser's state, and how often each layer of drop-out has drawn: its key follows from the seed."""
        return self._moments, nnx.filter_state(self._rest, nnx.RngCount)


def _named(tree: optax.OptState) -> list[tuple[str, jax.Array]]:
    """Every array of a tree, the counters of steps among them, under its path."""
    pairs = jax.tree.leaves_with_path(tree)
    return [(jax.tree_util.keystr(path, simple=True, separator="."), value) for path, value in pairs]


def _decays(parameters: nnx.State) -> nnx.State:
    """Matrices and kernels decay; batch norm and biases, the one-dimensional ones, do not."""
    return jax.tree.map(lambda value: value.ndim > 1, parameters)


def create(
    architecture: Architecture,
    classes: int,
    recipe: Recipe,
    learning_rates: NDArray[np.float32],
    begin: Begin = DRAWN,
) -> FlaxTrainer:
    """A trainer with seeded initial weights, or those to begin with; `learning_rates` holds one rate a step."""
    return FlaxTrainer(architecture, classes, recipe, learning_rates, begin)
