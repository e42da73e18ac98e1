"""Initial weights: those trained on ImageNet, one file per architecture for all frameworks, or a local file.

    ROOT/weights/resnet50.safetensors      canonical names, as fetched and converted by `medserve data weights resnet50`

The sources are those of torchvision, whose file names have the first 8 characters of the SHA-256; the package is not
needed. Where the whole SHA-256 is known, exactly that file is accepted. Where it is not, the 8 characters detect a
damaged download, but no forged one: the download warns, and prints the whole SHA-256 to compare. The metadata of the
stored file name its source, and a checkpoint has its SHA-256 as `initial_digest`.
"""

from pathlib import Path

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from medserve import plugins
from medserve.errors import BadInput, CannotRun, unknown
from medserve.models import Architecture
from medserve.store import sha256, write_bytes
from train import archives, data
from train.archives import Source
from train.frameworks import COMMON

BASE = "https://download.pytorch.org/models/"
FILES = {
    "resnet18": "resnet18-f37072fd.pth",
    "resnet50": "resnet50-0676ba61.pth",
    "efficientnet_v2_s": "efficientnet_v2_s-dd5fe13b.pth",
    "efficientnet_v2_l": "efficientnet_v2_l-59c71312.pth",
}
DIGESTS = {
    "resnet18-f37072fd.pth": "f37072fd47e89c5e827621c5baffa7500819f7896bbacec160b1a16c560e07ec",
    "resnet50-0676ba61.pth": "0676ba61b6795bbe1773cffd859882e5e297624d384b6993f7c9e683e722fb8a",
    "efficientnet_v2_s-dd5fe13b.pth": "dd5fe13b1d60ec15317ccc8ca158186e134d3366c3dde9cb9a4e301f2dc66c74",
}
"""Whole SHA-256 of these files. torchvision publishes none; several independent projects pin these same ones."""
IMAGENET = "imagenet"


def initial(named: str, architecture: Architecture) -> tuple[str | None, dict[str, NDArray[np.float32]]]:
    """SHA-256 and arrays by canonical name, without the head, of a recipe's `initial` weights; (null, {}) for random.

    Raises BadInput for a file that is not there, or holds no weights.
    """
    if named in ("", COMMON):
        return None, {}
    path = stored(architecture.name) if named == IMAGENET else Path(named)
    if not path.is_file():
        known = named == IMAGENET and architecture.name in FILES
        mend = f"`medserve data weights {architecture.name}` fetches it" if known else "put a safetensors file there"
        raise BadInput(f"{path}: no such file of weights; {mend}")
    try:
        weights = safetensors.numpy.load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        raise BadInput(f"{path}: no safetensors file: {error}") from None
    kept = {name: value for name, value in weights.items() if not name.startswith(f"{architecture.head}.")}
    return sha256(path), {name: value.astype(np.float32) for name, value in kept.items()}


def stored(name: str) -> Path:
    """The file of an architecture's ImageNet weights."""
    return data.root() / "weights" / f"{name}.safetensors"


def fetch(name: str, base: str = BASE) -> Path:
    """Download the ImageNet weights of an architecture and store them under canonical names; once.

    Raises BadInput for an architecture that has none, CannotRun when the download fails or brings another file.
    """
    if name not in FILES:
        raise unknown("architecture with ImageNet weights", name, FILES)
    target = stored(name)
    if target.is_file():
        return target
    file = FILES[name]
    pickled = target.with_name(file)
    source = Source(url=base + file, sha256=DIGESTS.get(file) or file.rpartition("-")[2].removesuffix(".pth"))
    archives.fetch(source, pickled)
    digest = sha256(pickled)
    if source.is_short:
        archives.say(
            f"{file}: its SHA-256 is {digest}, of which only the first {len(source.sha256)} characters are checked; "
            "compare it with that of a source you trust"
        )
    torch = plugins.need("torch", "reading the downloaded weights")
    try:
        state = torch.load(pickled, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises anything for a file that is none of its own
        raise CannotRun(f"{pickled}: cannot be read as weights: {error}") from None
    tensors = {key: value.numpy().copy() for key, value in state.items() if not key.endswith("num_batches_tracked")}
    write_bytes(target, safetensors.numpy.save(tensors, {"source": source.url, "sha256": digest}))
    pickled.unlink()
    return target
