"""The way into and out of a model that was made elsewhere, in NumPy: the reference of what is put into its graph."""

import numpy as np
from numpy.typing import NDArray

from medserve.models import Artifact, Contract
from medserve.spec import window_words


def prepare(images: NDArray[np.uint8], contract: Contract) -> NDArray[np.uint8] | NDArray[np.float32]:
    """uint8 (N, H, W, C) images as the model takes them."""
    order = (0, 3, 1, 2) if contract.layout == "nchw" else (0, 1, 2, 3)
    if contract.takes == "uint8":
        return np.ascontiguousarray(images.transpose(order))
    mean, std = (np.array(values, np.float32) for values in (contract.mean, contract.std))
    x: NDArray[np.float32] = (images.astype(np.float32) * np.float32(contract.scale) - mean) / std
    return np.ascontiguousarray(x.transpose(order))


def probabilities(given: NDArray[np.float32], contract: Contract) -> NDArray[np.float32]:
    """What the model gives, float32 (N, outputs), as probabilities (N, classes)."""
    y: NDArray[np.float32] = given.reshape(len(given), -1)
    if contract.gives == "logits" and contract.activation == "sigmoid":
        y = np.reciprocal(1 + np.exp(-y))
    elif contract.gives == "logits":
        shifted = np.exp(y - y.max(1, keepdims=True))
        y = shifted / shifted.sum(1, keepdims=True)
    return np.concatenate([1 - y, y], 1) if contract.outputs == 1 else y


def adoption(artifact: Artifact) -> list[str]:
    """The words of the command that made an artifact of a model from elsewhere; the images are not among them."""
    assert artifact.adopted is not None
    made, contract = artifact.adopted, artifact.adopted.contract
    words = ["medserve", "adopt", made.source, "--out", artifact.name, "--format", artifact.format]
    words += ["--size", str(contract.size), "--channels", str(contract.channels), "--layout", contract.layout]
    words += ["--gives", contract.gives, "--activation", contract.activation]
    if contract.takes == "float32":
        mean, std = (",".join(f"{value:.9g}" for value in values) for values in (contract.mean, contract.std))
        words += [f"--scale={contract.scale:.9g}", f"--mean={mean}", f"--std={std}"]
    words += window_words(artifact.checkpoint.window)
    return words + [word for proof in artifact.further for word in ("--runtime", proof.runtime)]
