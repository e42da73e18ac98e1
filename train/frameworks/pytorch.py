"""Training in PyTorch: eager, as its users run it, in channels-last layout."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as cross_entropies
from numpy.typing import NDArray

from medserve.machine import keep_memory
from medserve.models import Architecture, Recipe, Task
from train.frameworks import RANDOM, InitialState, Rates, Weights, build, is_trained

REQUIRES = ("torch",)


class PyTorchTrainer:
    """See `train.frameworks.Trainer`."""

    def __init__(
        self,
        architecture: Architecture,
        classes: int,
        recipe: Recipe,
        rates: Rates,
        initial: InitialState = RANDOM,
        task: Task = "multi-class",
    ) -> None:
        # Without it, training at 64 px takes twice as long. TensorFlow has an allocator of its own.
        keep_memory()
        # cuDNN uses TF32 by default; its error is ten times the limit of a certificate.
        torch.backends.cudnn.allow_tf32 = False
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        network, self._canonical = build("pytorch", architecture, classes, recipe, initial)
        self._network = network.to(self._device)
        self._seed = recipe.seed
        self._rates = rates
        self._step = 0
        self._task = task
        self._smoothing = recipe.label_smoothing
        self._class_weights = self._tensor(initial.loss_weights(classes, task))
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
        self._optimiser = torch.optim.AdamW(groups, lr=float(rates[0]), betas=(0.9, 0.999), eps=1e-8)

    def step(self, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> float:
        for group in self._optimiser.param_groups:
            group["lr"] = float(self._rates[self._step])
        # Drop-out masks depend only on the seed and the step, so that a resumed training draws the same ones.
        torch.manual_seed((self._seed << 32) + self._step)
        self._network.train()
        for module in self._frozen:
            module.eval()
        self._optimiser.zero_grad(set_to_none=True)
        loss = self._loss(self._network(self._tensor(images)), self._tensor(labels))
        loss.backward()
        self._optimiser.step()
        self._step += 1
        return float(loss.detach())

    def predict(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        self._network.eval()
        with torch.inference_mode():
            logits = self._network(self._tensor(images))
            return (logits.sigmoid() if self._task == "multi-label" else logits.softmax(1)).cpu().numpy()

    def weights(self) -> Weights:
        return self._canonical.read(self._network)

    def state(self) -> dict[str, NDArray[Any]]:
        moments = self._optimiser.state_dict()["state"].items()
        arrays = {f"{at}.{name}": value.cpu().numpy() for at, values in moments for name, value in values.items()}
        return {"step": np.array(self._step), **arrays}

    def restore(self, weights: Weights, state: dict[str, NDArray[Any]]) -> None:
        self._canonical.write(self._network, weights)
        self._step = int(state["step"])
        moments: dict[int, dict[str, torch.Tensor]] = {}
        for key in state.keys() - {"step"}:
            index, _, name = key.partition(".")
            moments.setdefault(int(index), {})[name] = torch.from_numpy(state[key].copy())
        groups = self._optimiser.state_dict()["param_groups"]
        self._optimiser.load_state_dict({"state": moments, "param_groups": groups})

    def _loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        if self._task == "multi-label":
            smoothed = labels * (1 - self._smoothing) + self._smoothing / 2
            losses = cross_entropies.binary_cross_entropy_with_logits(logits, smoothed, reduction="none")
            return (losses * torch.where(labels == 1, self._class_weights[1], self._class_weights[0])).mean()
        losses = cross_entropies.cross_entropy(logits, labels, label_smoothing=self._smoothing, reduction="none")
        return (losses * self._class_weights[labels]).mean()

    def _tensor(self, values: NDArray[np.generic]) -> torch.Tensor:
        return torch.from_numpy(values).to(self._device, non_blocking=True)


def _is_frozen(module: torch.nn.Module) -> bool:
    parameters = list(module.parameters())
    return bool(parameters) and not any(value.requires_grad for value in parameters)


create = PyTorchTrainer
