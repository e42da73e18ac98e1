"""Training in PyTorch: eager, as its users run it, in channels-last layout."""

import ctypes
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from medserve import plugins
from medserve.spec import Architecture, Recipe
from train.frameworks import RANDOM, InitialState, first_weights, is_trained

REQUIRES = ("torch",)

# Constants of malloc.h.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


class PyTorchTrainer:
    """See `train.frameworks.Trainer`."""

    def __init__(
        self,
        architecture: Architecture,
        classes: int,
        recipe: Recipe,
        learning_rates: NDArray[np.float32],
        initial: InitialState,
    ) -> None:
        _keep_memory()
        # cuDNN uses TF32 by default; its error is ten times the limit of a certificate.
        torch.backends.cudnn.allow_tf32 = False
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        build = plugins.load(f"train.models.{architecture.family}", "pytorch").build
        self._canonical = plugins.load("train.models.canonical", "pytorch")
        self._network = build(architecture, classes, recipe.seed, recipe.hidden, recipe.drop_out).to(self._device)
        self._canonical.write(self._network, first_weights(self._canonical.read(self._network), initial, architecture))
        self._seed = recipe.seed
        self._rates = learning_rates
        self._step = 0
        self._loss = torch.nn.CrossEntropyLoss(label_smoothing=recipe.label_smoothing, reduction="none")
        weights = np.ones(classes, np.float32) if initial.class_weights is None else initial.class_weights
        self._class_weights = self._tensor(weights)
        self.parameters = sum(value.numel() for value in self._network.parameters())
        for name, value in self._network.named_parameters():
            value.requires_grad_(is_trained(architecture, recipe, name))
        parameters = [value for value in self._network.parameters() if value.requires_grad]
        # A frozen layer updates no batch-norm statistics and applies no drop-out.
        self._frozen = [module for module in self._network.modules() if _is_frozen(module)]
        # Weight decay applies to matrices and kernels, not to one-dimensional parameters (batch norm, biases).
        groups = [
            {"params": [value for value in parameters if value.ndim > 1], "weight_decay": recipe.weight_decay},
            {"params": [value for value in parameters if value.ndim == 1], "weight_decay": 0.0},
        ]
        self._optimiser = torch.optim.AdamW(groups, lr=float(learning_rates[0]), betas=(0.9, 0.999), eps=1e-8)

    def step(self, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> float:
        for group in self._optimiser.param_groups:
            group["lr"] = float(self._rates[self._step])
        # Drop-out masks depend only on the seed and the step, so that a resumed training draws the same ones.
        torch.manual_seed((self._seed << 32) + self._step)
        self._network.train()
        for module in self._frozen:
            module.eval()
        self._optimiser.zero_grad(set_to_none=True)
        targets = self._tensor(labels)
        losses = self._loss(self._network(self._tensor(images)), targets)
        loss = (losses * self._class_weights[targets]).mean()
        loss.backward()
        self._optimiser.step()
        self._step += 1
        return float(loss.detach())

    def predict(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        self._network.eval()
        with torch.inference_mode():
            return self._network(self._tensor(images)).softmax(1).cpu().numpy()

    def weights(self) -> dict[str, NDArray[np.float32]]:
        return self._canonical.read(self._network)

    def save(self, folder: Path) -> None:
        save_file(self._canonical.read(self._network), folder / "weights.safetensors")
        state = {"step": np.array(self._step)}
        for index, values in self._optimiser.state_dict()["state"].items():
            state |= {f"{index}.{name}": value.cpu().numpy() for name, value in values.items()}
        save_file({name: np.array(value, order="C") for name, value in state.items()}, folder / "resume.safetensors")

    def restore(self, folder: Path) -> None:
        self._canonical.write(self._network, load_file(folder / "weights.safetensors"))
        state = load_file(folder / "resume.safetensors")
        self._step = int(state.pop("step"))
        moments: dict[int, dict[str, torch.Tensor]] = {}
        for key, value in state.items():
            index, _, name = key.partition(".")
            moments.setdefault(int(index), {})[name] = torch.from_numpy(value.copy())
        groups = self._optimiser.state_dict()["param_groups"]
        self._optimiser.load_state_dict({"state": moments, "param_groups": groups})

    def _tensor(self, values: NDArray[np.generic]) -> torch.Tensor:
        return torch.from_numpy(values).to(self._device, non_blocking=True)


def _is_frozen(module: torch.nn.Module) -> bool:
    parameters = list(module.parameters())
    return bool(parameters) and not any(value.requires_grad for value in parameters)


def _keep_memory() -> None:
    """Make glibc keep freed memory, as PyTorch users do on CPUs by preloading another allocator.

    By default glibc returns each array above 32 MB to the kernel, which clears the same memory again in the next step:
    that halves the speed at 64 px. The other frameworks have their own allocators.
    """
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def create(
    architecture: Architecture,
    classes: int,
    recipe: Recipe,
    learning_rates: NDArray[np.float32],
    initial: InitialState = RANDOM,
) -> PyTorchTrainer:
    """A trainer that starts from `initial`, its random weights seeded; `learning_rates` holds one rate per step."""
    return PyTorchTrainer(architecture, classes, recipe, learning_rates, initial)
