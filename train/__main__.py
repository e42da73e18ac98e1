"""`python -m train`: `run` trains a checkpoint, `parity` compares it between frameworks, `data` manages data sets."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from medserve import errors, plugins
from medserve.errors import BadInput, CannotRun, unknown
from medserve.image_files import parse_window
from medserve.models import Recipe
from medserve.tables import ARCHITECTURES, DATASETS, check_size, pick
from train import archives, data, loop, parity, pretrained

app = typer.Typer(
    help="Train checkpoints, compare them between frameworks, manage data sets.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
data_commands = typer.Typer(help="List, fetch and unpack data sets.", no_args_is_help=True)
app.add_typer(data_commands, name="data")

NAMES = f"One of: {', '.join(DATASETS)}"
PATH = "or the path of your own images: a folder such as ./scans with a folder per class, or an .npz."
Name = Annotated[str, typer.Argument(metavar="DATASET", help=f"{NAMES}; {PATH}")]
Size = Annotated[
    int | None,
    typer.Option(help="Height and width of the images in pixels.", show_default=f"{data.DEFAULT_SIZE}, or your own's"),
]
Window = Annotated[
    str | None,
    typer.Option(
        help="LOW:HIGH, the grey values of your own images of more than 8 bits that become 0 and 255; or `file`: the "
        "window of each DICOM file."
    ),
]
Unofficial = Annotated[bool, typer.Option("--unofficial", help="Accept an archive without the official MD5.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
@app.command("train", hidden=True)
def run(
    dataset: Annotated[str, typer.Option(help=f"{NAMES}; {PATH}")],
    out: Annotated[Path, typer.Option(help="Folder of the new checkpoint.")],
    size: Size = None,
    architecture: Annotated[str, typer.Option(help=f"One of: {', '.join(ARCHITECTURES)}.")] = "cnn",
    framework: Annotated[str, typer.Option(help="Framework that trains: a file of train/frameworks.")] = "pytorch",
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="Change a field of the recipe. Repeatable.")
    ] = None,
    unofficial: Unofficial = False,
    window: Window = None,
) -> None:
    """Train one checkpoint, or resume a training that was killed. Uses all cores unless OMP_NUM_THREADS limits them.

    Example: medserve train --dataset synthetic --size 28 --out checkpoints/cells --set epochs=4
    """
    # A path such as `runs/x/.` gives the checkpoint no name; the resolved one does.
    out = out.resolve()
    errors.check_name("checkpoint", out.name)
    # A mistyped name fails before the data set is unpacked or drawn.
    pick(ARCHITECTURES, "architecture", architecture)
    plugins.literals("train.frameworks", framework)
    recipe = _recipe(set_ or [])
    images = data.open_dataset(dataset, size, unofficial=unofficial, window=parse_window(window))
    loop.train(images, architecture, framework, recipe, out)


@app.command("parity")
def parity_(
    checkpoint: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="Folder of a trained checkpoint.")],
    framework: Annotated[
        list[str] | None, typer.Option(help="Framework to compare. Repeatable.", show_default="all installed ones")
    ] = None,
    json: Json = False,
) -> None:
    """Check that every framework computes the same function from a checkpoint; if not, name the first layer to differ.

    Logits may differ by 1e-4 + 1e-4 |logit|, probabilities of the whole test split by 1e-4; only near ties may decide
    for another class.

    Example: medserve parity runs/quick/checkpoints/synthetic-28-cnn-pytorch-s0
    """
    for name in framework or []:
        plugins.literals("train.frameworks", name)
    names = framework or [
        name for name in plugins.names("train.frameworks") if not plugins.missing("train.frameworks", name)
    ]
    results = parity.compare_frameworks(checkpoint, names)
    if json:
        _print_json([msgspec.to_builtins(result) | {"agrees": result.reason is None} for result in results])
    else:
        for result in results:
            typer.echo(parity.describe(result))
    if differing := [f"{result.framework} ({result.reason})" for result in results if result.reason]:
        raise CannotRun(f"{checkpoint.name}: another function in {', '.join(differing)}")


@data_commands.command("list")
def list_(json: Json = False) -> None:
    """List the data sets and the sizes that are on this machine, as an archive or unpacked."""
    available = {
        spec.name: [size for size in spec.sizes or range(8, 1025) if data.is_available(spec.name, size)]
        for spec in DATASETS.values()
    }
    if json:
        _print_json([msgspec.to_builtins(spec) | {"here": available[spec.name]} for spec in DATASETS.values()])
        return
    typer.echo(f"root: {data.root()}")
    for spec in DATASETS.values():
        typer.echo(
            f"{spec.name:<10}  {spec.classes} classes ({spec.task}), {spec.train}/{spec.val}/{spec.test} images, "
            f"{_sizes(spec.sizes) or 'any size'}; here: {_sizes(available[spec.name]) or 'none'}; {spec.licence}"
        )


@data_commands.command()
def fetch(
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help=f"{NAMES}.")],
    size: Annotated[int, typer.Option(help="Height and width of the images in pixels.")] = data.DEFAULT_SIZE,
) -> None:
    """Download an official archive and check its MD5. Run again, it resumes the download.

    Example: medserve data fetch bloodmnist --size 64
    """
    check_size(pick(DATASETS, "dataset", dataset), size)
    if dataset == "synthetic":
        raise BadInput(f"synthetic is drawn, not fetched; `medserve data prepare synthetic --size {size}` draws it")
    target = data.root() / f"{data.stem(dataset, size)}.npz"
    archives.fetch(archives.official(dataset, size), target)
    typer.echo(target)


@data_commands.command()
def weights(architecture: Annotated[str, typer.Argument(help="Architecture with ImageNet weights.")]) -> None:
    """Download weights trained on ImageNet, for recipes with `initial=imagenet`.

    Example: medserve data weights resnet50
    """
    typer.echo(pretrained.fetch(architecture))


@data_commands.command()
def prepare(
    dataset: Name, size: Size = None, unofficial: Unofficial = False, window: Window = None, json: Json = False
) -> None:
    """Unpack or draw a data set if necessary, and check the digest of every array.

    Example: medserve data prepare synthetic --size 64
    """
    opened = data.open_dataset(dataset, size, unofficial=unofficial, thorough=True, window=parse_window(window))
    if not json:
        typer.echo(opened.folder)
        return
    _print_json(
        {
            "dataset": opened.name,
            "size": opened.size,
            "digest": opened.digest,
            "unofficial": opened.unofficial,
            "folder": str(opened.folder.resolve()),
            "classes": opened.classes,
        }
    )


def _recipe(changes: list[str]) -> Recipe:
    values = msgspec.to_builtins(Recipe())
    for change in changes:
        name, equals, value = change.partition("=")
        if not equals:
            raise BadInput(f"--set {change}: expected FIELD=VALUE with one of the fields {', '.join(values)}")
        if name not in values:
            raise BadInput(f"--set {change}: {unknown('field', name, values)}")
        values[name] = value
    try:
        return msgspec.convert(values, Recipe, strict=False)
    except msgspec.ValidationError as error:
        # `Expected `int`, got `str` - at `$.epochs``.
        said, _, place = str(error).partition(" - at `$.")
        raise BadInput(f"--set {' '.join(changes)}: {place.rstrip('`') or 'recipe'}: {said}") from None


def _sizes(sizes: Sequence[int]) -> str:
    return f"{', '.join(map(str, sizes))} px" if sizes else ""


def _print_json(value: object) -> None:
    typer.echo(msgspec.json.encode(value).decode())


if __name__ == "__main__":
    errors.main(lambda: app(prog_name="medserve"))
