"""Models that were made elsewhere: one file per library, with REQUIRES (modules), READS (endings) and WRITES (formats).

`inspect(path) -> Found` reads what the file says of its input and output. `scores(path, contract, x)` runs the file as
it is on prepared float32 or uint8 `x` and returns float32 (N, outputs). `write(path, contract, form, out)` writes the
model file `out` in the format `form`, with the contract's way in and out put into the graph: input `image` uint8
(N, H, W, C) with N free, output `probabilities` float32 (N, classes). They raise BadInput for a file that cannot be
adopted and CannotRun with the reason when the library cannot convert it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from medserve.errors import BadInput


class Found(NamedTuple):
    """What a model's file says: names, the input's shape with null where it is free, its type, and the numbers in it.

    The shape is null where the file does not say it, and `outputs` where the numbers per image are not known.
    """

    input: str
    output: str
    shape: tuple[int | None, ...] | None
    takes: Literal["uint8", "float32"]
    outputs: int | None
    parameters: int


def only(path: Path, what: str, names: Sequence[str], asked: str = "") -> str:
    """The only one of the names, or the one that is asked for. Raises BadInput where it is not clear which is meant."""
    if asked in names:
        return asked
    if len(names) != 1:
        mend = "give one with --output" if what == "output" else "a classifier of images takes the images alone"
        raise BadInput(f"{path}: has {len(names)} {what}s ({', '.join(names)}); {mend}")
    return names[0]


def takes(path: Path, dtype: str) -> Literal["uint8", "float32"]:
    """The type of an input. Raises BadInput for one that images are not given in."""
    if dtype == "uint8":
        return "uint8"
    if dtype == "float32":
        return "float32"
    raise BadInput(f"{path}: its input is {dtype}; expected float32 or uint8")
