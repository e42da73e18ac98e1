"""The `synthetic` data set: stained blood-like cells, drawn by formula at any size.

A cell is a row of random numbers (size, nucleus, stains, granules, neighbours, light) that do not depend on the image
size; `draw` renders it in a unit square, so more pixels show more detail of the same cell. The eight classes differ in
the means of these numbers and overlap, so that no network classifies all cells correctly. Colours follow the
Beer-Lambert law: each stain absorbs light in proportion to its density.

All random numbers come from NumPy's PCG64 `Generator`: the same NumPy version gives the same cells. Pixels may differ
by one grey level between processors, because their sines and exponentials round differently.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from medserve.machine import usable_cpus
from medserve.models import Split
from medserve.spec import Noun

VERSION = "1"
"""Version of the drawing, recorded in the manifest; it changes whenever the pixels change."""

SEED = 20250

Array = NDArray[np.float32]

# Means per class. `radius` and `bridge` are fractions of the image's side, `nucleus` one of the radius, `span` is in
# radians, `coarseness` and `redness` are shares from 0 to 1, the other columns but `lobes` are optical densities.
COLUMNS = ("radius", "nucleus", "lobes", "span", "bridge", "density", "blue", "pink", "grains", "coarseness", "redness")
CLASSES = {
    "small round": (0.25, 0.78, 1.0, 0.0, 0.015, 1.25, 0.40, 0.05, 0.05, 0.3, 0.3),
    "large kidney": (0.33, 0.66, 3.0, 2.2, 0.035, 0.85, 0.38, 0.10, 0.12, 0.2, 0.3),
    "band": (0.30, 0.56, 4.0, 3.1, 0.030, 1.15, 0.12, 0.20, 0.25, 0.2, 0.4),
    "segmented": (0.30, 0.48, 3.6, 4.4, 0.010, 1.25, 0.10, 0.24, 0.28, 0.2, 0.4),
    "red granular": (0.31, 0.46, 2.2, 2.8, 0.012, 1.10, 0.08, 0.28, 0.90, 0.8, 0.9),
    "dark granular": (0.28, 0.56, 2.4, 2.4, 0.020, 0.95, 0.20, 0.15, 1.00, 0.8, 0.1),
    "dense core": (0.23, 0.56, 1.0, 0.0, 0.015, 1.60, 0.22, 0.26, 0.05, 0.3, 0.3),
    "fragment": (0.15, 0.30, 1.2, 0.0, 0.020, 0.40, 0.22, 0.16, 0.60, 0.4, 0.2),
}
# Standard deviations, the same for all classes.
SPREAD = (0.033, 0.075, 0.50, 0.50, 0.006, 0.19, 0.08, 0.07, 0.17, 0.20, 0.20)

LIGHT = np.array((0.95, 0.91, 0.88), np.float32)
# Absorption of red, green and blue light per unit of optical density.
NUCLEAR = np.array((0.95, 1.35, 0.50), np.float32)
BLUE = np.array((0.85, 0.60, 0.25), np.float32)
PINK = np.array((0.10, 0.85, 0.50), np.float32)
ORANGE = np.array((0.15, 0.95, 1.05), np.float32)
VIOLET = np.array((1.20, 1.45, 0.60), np.float32)
LOBES, NEIGHBOURS, WAVES = 4, 5, 11


class Cells(Noun, frozen=True, kw_only=True):
    """Parameters of n cells, independent of the image size: int64 (n,) `labels`, float32 `values` with n rows each.

    `stream` selects the random numbers of the noise.
    """

    labels: NDArray[np.int64]
    values: dict[str, Array]
    stream: int


def cells(split: Split, count: int) -> Cells:
    """The first `count` cells of a split, the classes balanced and shuffled. The same at every image size."""
    stream = ("train", "val", "test").index(split)
    rng = np.random.Generator(np.random.PCG64([SEED, stream]))
    labels = rng.permutation(np.arange(count, dtype=np.int64) % len(CLASSES))
    table = np.array(list(CLASSES.values()))[labels] + SPREAD * rng.standard_normal((count, len(COLUMNS)))
    own = dict(zip(COLUMNS, table.T, strict=True))
    lobes = np.clip(np.rint(own["lobes"]), 1, LOBES)[:, None]
    place = np.floor(np.arange(LOBES) * lobes / LOBES)
    angle = rng.uniform(0, 2 * np.pi, (count, 1)) + own["span"][:, None] * (place / np.maximum(lobes - 1, 1) - 0.5)
    # Lobes divide the area of the nucleus among them and lie on an arc inside the cell.
    nucleus = (own["radius"] * np.clip(own["nucleus"], 0.2, 0.9))[:, None]
    lobe = nucleus / np.sqrt(lobes) * rng.uniform(0.85, 1.15, (count, LOBES))
    arc = np.where(lobes > 1, 0.80 * nucleus, 0.0)
    across, down = arc * np.cos(angle), arc * np.sin(angle)
    around = np.linspace(0, 2 * np.pi, NEIGHBOURS, endpoint=False) + rng.uniform(0, 1.0, (count, NEIGHBOURS))
    away = rng.uniform(0.48, 0.80, (count, NEIGHBOURS))
    wave = rng.uniform(0.55, 1.3, (count, WAVES)) * (150 - 60 * np.clip(own["coarseness"], 0, 1))[:, None]
    heading = np.linspace(0, np.pi, WAVES, endpoint=False) + rng.uniform(0, np.pi / WAVES, (count, WAVES))
    values = {
        "centre": rng.normal(0.5, 0.045, (count, 2)),
        "radius": np.clip(own["radius"], 0.08, 0.42),
        "lobe": lobe,
        "lobe_x": across - 0.7 * across.mean(1, keepdims=True) + rng.normal(0, 0.012, (count, LOBES)),
        "lobe_y": down - 0.7 * down.mean(1, keepdims=True) + rng.normal(0, 0.012, (count, LOBES)),
        "bridge": np.clip(own["bridge"], 0.006, 0.06),
        "density": np.clip(own["density"], 0.2, 2.0),
        "blue": np.clip(own["blue"], 0.02, 0.8),
        "pink": np.clip(own["pink"], 0.02, 0.8),
        "grains": np.clip(own["grains"], 0, 1.2),
        "redness": np.clip(own["redness"], 0, 1),
        "wave_x": wave * np.cos(heading),
        "wave_y": wave * np.sin(heading),
        "wave_phase": rng.uniform(0, 2 * np.pi, (count, WAVES)),
        "warp": rng.normal(0, 0.014, (count, 2)),
        "warp_frequency": rng.uniform(7, 15, (count, 2)),
        "warp_phase": rng.uniform(0, 2 * np.pi, (count, 2)),
        "neighbour_x": 0.5 + away * np.cos(around),
        "neighbour_y": 0.5 + away * np.sin(around),
        "neighbour": rng.uniform(0.13, 0.21, (count, NEIGHBOURS)),
        "neighbour_density": rng.uniform(0.25, 0.50, (count, 1)),
        "focus": rng.uniform(0.010, 0.040, count),
        "light": LIGHT * rng.normal(1.0, 0.035, (count, 1)) * rng.normal(1.0, 0.015, (count, 3)),
        "slope": rng.normal(0, 0.05, (count, 2)),
        "stain": rng.lognormal(0, 0.16, (count, 3)),
        "noise": rng.uniform(0.010, 0.035, count),
    }
    return Cells(
        labels=labels, values={name: value.astype(np.float32) for name, value in values.items()}, stream=stream
    )


def draw(cells: Cells, size: int) -> Iterator[NDArray[np.uint8]]:
    """Render cells as uint8 (n, size, size, 3), in chunks and in order, on all usable cores."""
    # About 50,000 pixels per chunk, so that the intermediate arrays stay in a core's cache.
    step = max(1, 50_176 // size**2)

    def chunk(start: int) -> NDArray[np.uint8]:
        # Each chunk has its own random stream, so that the chunks can be drawn in any order.
        rng = np.random.Generator(np.random.PCG64([SEED, cells.stream, size, start]))
        values = {name: value[start : start + step] for name, value in cells.values.items()}
        image = _render(values, size)
        image += values["noise"][:, None, None, None] * rng.standard_normal(image.shape, np.float32)
        return np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)

    workers = len(usable_cpus())
    with ThreadPoolExecutor(workers) as pool:
        # A few chunks ahead only, so that they do not accumulate in memory.
        for first in range(0, len(cells.labels), 4 * workers * step):
            last = min(first + 4 * workers * step, len(cells.labels))
            yield from pool.map(chunk, range(first, last, step))


def _render(values: dict[str, Array], size: int) -> Array:
    """Light intensities, float32 (n, size, size, 3)."""
    # (n,) becomes (n, 1, 1), (n, k) becomes (n, k, 1, 1): they broadcast with rows (1, size, 1), columns (1, 1, size).
    cell = {name: value.reshape(*value.shape, 1, 1) for name, value in values.items()}
    line = np.linspace(0.5 / size, 1 - 0.5 / size, size, dtype=np.float32)
    x, y = line[None, None, :], line[None, :, None]
    edge = np.hypot(cell["focus"], np.float32(1 / size))

    # Two low-frequency waves distort the coordinates, and with them every outline of the cell.
    frequency, phase = cell["warp_frequency"], cell["warp_phase"]
    u = x - cell["centre"][:, 0] + cell["warp"][:, 0] * np.sin(frequency[:, 0] * y + phase[:, 0])
    v = y - cell["centre"][:, 1] + cell["warp"][:, 1] * np.sin(frequency[:, 1] * x + phase[:, 1])

    outline = np.hypot(u, v) - cell["radius"]
    body = _inside(outline, edge)
    rim = np.float32(0.25) * np.exp(-np.square(outline / np.float32(0.02))) * body
    # A smooth minimum of the distances merges the discs of the lobes where they meet.
    union = np.full_like(u, 1e-18)
    for lobe in range(LOBES):
        away = np.hypot(u - cell["lobe_x"][:, lobe], v - cell["lobe_y"][:, lobe]) - cell["lobe"][:, lobe]
        union += np.exp(np.clip(-away / cell["bridge"], -40, 40))
    nucleus = _inside(-cell["bridge"] * np.log(union), edge) * body
    plasm = body - nucleus

    red = np.zeros_like(u)
    for neighbour in range(NEIGHBOURS):
        radius = cell["neighbour"][:, neighbour]
        away = np.hypot(x - cell["neighbour_x"][:, neighbour], y - cell["neighbour_y"][:, neighbour])
        pale = 1 - np.float32(0.55) * np.exp(-4 * np.square(away / radius))
        red = np.maximum(red, _inside(away - radius, edge) * pale)

    grain = _grain(cell, x, y, size)
    chromatin = cell["stain"][:, 0] * cell["density"] * nucleus * (1 + np.float32(0.16) * grain)
    blue = cell["stain"][:, 1] * cell["blue"] * (plasm + rim)
    pink = cell["stain"][:, 2] * (cell["pink"] * plasm + cell["neighbour_density"][:, 0] * red * (1 - body))
    granules = cell["grains"] * (body - np.float32(0.65) * nucleus) * np.maximum(grain - np.float32(0.4), 0)
    slope = 1 + cell["slope"][:, 0] * (x - np.float32(0.5)) + cell["slope"][:, 1] * (y - np.float32(0.5))
    image = np.empty((*u.shape, 3), np.float32)
    for channel in range(3):
        tint = VIOLET[channel] + cell["redness"] * (ORANGE[channel] - VIOLET[channel])
        density = NUCLEAR[channel] * chromatin + BLUE[channel] * blue + PINK[channel] * pink + tint * granules
        image[..., channel] = cell["light"][:, channel] * slope * np.exp(-density)
    return image


def _inside(distance: Array, edge: Array) -> Array:
    """1 inside (negative distance), 0 outside, linear in between over the width of `edge`."""
    inside: Array = np.clip(np.float32(0.5) - distance / (2 * edge), 0, 1)
    return inside


def _grain(cell: dict[str, Array], x: Array, y: Array, size: int) -> Array:
    """Speckle with standard deviation 1: a sum of plane waves, each attenuated as by averaging over a pixel."""
    across, down = cell["wave_x"], cell["wave_y"]
    fade = np.exp((np.square(across) + np.square(down)) * np.float32(-1 / (24 * size**2)))
    rows, columns = down * y + cell["wave_phase"], across * x
    # cos(a + b) = cos a cos b - sin a sin b: sines of rows and of columns only, then a matrix product.
    left = np.concatenate((np.cos(rows), -np.sin(rows)), 1)[..., 0] * np.tile(fade[..., 0], (1, 2, 1))
    right = np.concatenate((np.cos(columns), np.sin(columns)), 1)[:, :, 0]
    grain: Array = np.matmul(left.transpose(0, 2, 1), right) * np.float32(np.sqrt(2 / WAVES))
    return grain
