"""The plain loop in PyTorch: a DataLoader, a forward and a backward pass, an optimiser step."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from medserve.models import Recipe


def plain(
    network: torch.nn.Module, images: NDArray[np.uint8], labels: NDArray[np.int64], recipe: Recipe
) -> Callable[[], object]:
    """See `train.benchmark`."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = network.to(device)
    data = torch.utils.data.TensorDataset(torch.from_numpy(images), torch.from_numpy(labels))
    loader = torch.utils.data.DataLoader(data, batch_size=recipe.batch, shuffle=True, drop_last=True)
    optimiser = torch.optim.AdamW(network.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    loss_of = torch.nn.CrossEntropyLoss(label_smoothing=recipe.label_smoothing)

    def epoch() -> None:
        network.train()
        for batch, targets in loader:
            optimiser.zero_grad()
            loss = loss_of(network(batch.to(device)), targets.to(device))
            loss.backward()
            optimiser.step()
            loss.item()

    return epoch
