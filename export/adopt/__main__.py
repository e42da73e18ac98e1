"""`python -m export.adopt MODEL --out FOLDER`: a certified artifact of a model that was made elsewhere."""

import hashlib
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
import typer
from numpy.typing import NDArray

from export.adopt import Found
from export.adopt._artifact import Made, write
from export.adopt._expected import beside_commonest, check, in_order
from export.adopt._images import Given, read
from export.artifact import further_runtimes
from export.golden import IMAGES, draw
from medserve import errors, plugins, process, store
from medserve.adopted import prepare, probabilities
from medserve.errors import BadInput, CannotRun
from medserve.image_files import parse_window
from medserve.models import Adopted, Contract, Golden, Task
from medserve.tables import title

DRAWN = 64
"""Images that are drawn where none are given."""
SURE = 1e-3
"""What gives numbers from 0 to 1 that add up to 1 within this gives probabilities; a sigmoid's need not add up."""


def adopt(
    model: Annotated[
        Path,
        typer.Argument(
            metavar="MODEL", help="ONNX, TorchScript, .pt2, .keras, a SavedModel's folder, StableHLO, TFLite."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the new artifact.")],
    images: Annotated[
        str | None,
        typer.Option(
            help="A folder of images, or of a folder per class; .npy; .npz; a data set's name.",
            show_default="drawn ones",
        ),
    ] = None,
    window: Annotated[
        str | None,
        typer.Option(
            help="LOW:HIGH, the grey values of image files of more than 8 bits that become 0 and 255; or `file`: the "
            "window of each DICOM file."
        ),
    ] = None,
    reference: Annotated[
        Path | None, typer.Option(help=".npy of the probabilities that it must give, float32 (N, classes).")
    ] = None,
    form: Annotated[
        str | None, typer.Option("--format", help="Format of the artifact.", show_default="its own")
    ] = None,
    runtime: Annotated[
        list[str] | None, typer.Option(help="Certify it for this one too, beside the format's own; repeatable.")
    ] = None,
    size: Annotated[
        int | None, typer.Option(min=8, max=1024, help="Side of its images, pixels.", show_default="the file's")
    ] = None,
    channels: Annotated[
        int | None, typer.Option(min=1, max=3, help="Of its images.", show_default="the file's, else 3")
    ] = None,
    layout: Annotated[
        Literal["nhwc", "nchw"] | None, typer.Option(help="Of its input.", show_default="the file's")
    ] = None,
    scale: Annotated[float, typer.Option(help="What bytes are multiplied with.", show_default="1/255")] = 1 / 255,
    mean: Annotated[str, typer.Option(help="Subtracted then, per channel.")] = "0",
    std: Annotated[str, typer.Option(help="What that is divided by, per channel.")] = "1",
    gives: Annotated[
        Literal["logits", "probabilities"] | None,
        typer.Option(help="What it gives.", show_default="as its scores look"),
    ] = None,
    activation: Annotated[
        Literal["softmax", "sigmoid"] | None,
        typer.Option(
            help="Of logits. A sigmoid of several: an image may have several labels.",
            show_default="sigmoid of a single one, or for several labels per image",
        ),
    ] = None,
    output: Annotated[str, typer.Option(help="The output, where it has several.")] = "",
    classes: Annotated[str, typer.Option(help="Names of the classes in the order of the scores, with commas.")] = "",
    golden: Annotated[
        Golden, typer.Option(help="Images of golden.npz: 32 of those given, or drawn ones that show no patient.")
    ] = "test",
    anyway: Annotated[
        bool, typer.Option("--anyway", help="Adopt it although its scores do not match the labels.")
    ] = False,
) -> None:
    """Make an artifact of a model that was made elsewhere, and prove that it gives the same scores.

    uint8 images become its input inside the graph (TFLite: in the runtime), and its output probabilities. The reference
    are the scores of the file itself, by its own library, on the images that are given, or on drawn ones. Adopting
    executes what the file says: adopt only what you trust.

    Example: medserve adopt resnet.onnx --images xrays/ --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225 --out mine
    """
    errors.check_name("artifact", out.name)
    name, adopter = _adopter(model)
    form = form or adopter.WRITES[0]
    if form not in adopter.WRITES:
        raise BadInput(f"{title(name)} models are not written as {form}; there is: {', '.join(adopter.WRITES)}")
    further = further_runtimes(runtime or (), form)
    stated = parse_window(window)
    digest = _digest(model)
    if (out / store.ARTIFACT).is_file():
        print(f"{out}: replaces the artifact that is there", file=sys.stderr)
    print(f"{model}: executes this {title(name)} model, SHA-256 {digest}", file=sys.stderr)
    found = adopter.inspect(model, output)
    contract = _contract(model, found, size, channels, layout, scale, _numbers("--mean", mean), _numbers("--std", std))
    given = Given(draw(DRAWN, contract.size)[..., : contract.channels])
    if images is not None:
        given = read(images, contract.size if found.shape or size else None, contract.channels, stated)
        contract = msgspec.structs.replace(contract, size=given.images.shape[1])
    raw = _own_scores(model, adopter, contract, given.images)
    single = raw.shape[1] == 1
    if single and activation == "softmax":
        raise BadInput(f"{model}: gives one number per image, of which a softmax is always 1; use --activation sigmoid")
    several = given.labels is not None and given.labels.ndim == 2
    if several and activation == "softmax":
        raise BadInput(f"{images}: several labels per image, which a softmax excludes; use --activation sigmoid")
    activation = activation or ("sigmoid" if single or several else "softmax")
    if found.takes == "uint8" and (mean, std, scale) != ("0", "1", 1 / 255):
        raise BadInput(f"{model}: takes bytes as they are; leave out --scale, --mean and --std")
    looks = (raw >= 0).all() and ((raw <= 1) if activation == "sigmoid" else abs(raw.sum(1) - 1) < SURE).all()
    if looks and gives == "logits" and not single:
        raise BadInput(f"{model}: its scores are probabilities already (--gives probabilities): they add up to 1")
    contract = msgspec.structs.replace(
        contract,
        outputs=raw.shape[1],
        gives=gives or ("probabilities" if looks else "logits"),
        activation=activation,
    )
    task: Task = "binary" if contract.classes == 2 else "multi-class"
    # Without labels, a model with a sigmoid per output is taken to decide about each of them.
    if several or (given.labels is None and activation == "sigmoid" and not single):
        task = "multi-label"
    scores = probabilities(raw, contract).astype(np.float32)
    names = tuple(filter(None, classes.split(",")))
    if names and given.classes and given.named:
        given = in_order(given, names)
    names = names or given.classes or tuple(f"class {place}" for place in range(contract.classes))
    check(model, scores, given, names, reference, anyway)
    source = Adopted(
        source=model.name, digest=digest, contract=contract, reference="drawn" if images is None else "given"
    )
    chosen = np.linspace(0, len(scores) - 1, min(IMAGES, len(scores))).astype(int)
    shown = given.images[chosen], scores[chosen]
    if golden == "drawn":
        drawn = draw(IMAGES, contract.size)[..., : contract.channels]
        shown = drawn, probabilities(_own_scores(model, adopter, contract, drawn), contract).astype(np.float32)
    made = Made(source, found.parameters, given, scores, names, task, images, stated, golden, shown)
    artifact = write(out, made, form, further, lambda path: adopter.write(model, contract, form, path))
    print(f"{out}: {_words(contract)}", file=sys.stderr)
    if (share := artifact.checkpoint.test.accuracy) is not None and given.labels is not None:
        print(f"{out}: {beside_commonest(share, given.labels, contract.classes, 2)}", file=sys.stderr)
    for proof in artifact.certificates:
        state = "valid" if proof.valid else f"NOT valid: {proof.reason}"
        error = "not finite" if proof.max_abs is None else f"{proof.max_abs:.1e}"
        print(
            f"{out}: {form} by {proof.runtime}, largest |difference| {error} from the file itself on {proof.images} "
            f"{source.reference} images, certificate {state}",
            file=sys.stderr,
        )
    if not artifact.certificate.valid:
        raise CannotRun(f"{out.name}: no valid certificate: {artifact.certificate.reason}")
    print(f"{out / store.ARTIFACT}: SHA-256 {store.sha256(out / store.ARTIFACT)}", file=sys.stderr)


def _adopter(model: Path) -> tuple[str, Any]:
    """The plug-in for a file, by the ending of its name; a SavedModel is a folder."""
    if not model.exists():
        raise BadInput(f"{model}: no such file or folder")
    ending = "saved_model.pb" if model.is_dir() else model.suffix
    if model.is_dir() and not (model / ending).is_file():
        raise BadInput(f"{model}: a folder without {ending}; give a model's file, or a SavedModel's folder")
    known = {name: plugins.literals("export.adopt", name) for name in plugins.names("export.adopt")}
    for name, literals in known.items():
        if ending in literals["READS"]:
            return name, plugins.load("export.adopt", name)
    endings = (end for literals in known.values() for end in literals["READS"])
    raise BadInput(f"{model}: no model that is known by its ending; there is: {', '.join(sorted(endings))}")


def _digest(model: Path) -> str:
    """The SHA-256 of a file; of a folder that of the names and digests of its files, as `sha256sum` prints them."""
    if not model.is_dir():
        return store.sha256(model)
    files = sorted(path for path in model.rglob("*") if path.is_file())
    lines = (f"{store.sha256(path)}  {path.relative_to(model)}\n" for path in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _contract(
    model: Path,
    found: Found,
    size: int | None,
    channels: int | None,
    layout: Literal["nhwc", "nchw"] | None,
    scale: float,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> Contract:
    """What is asked for and what the file says. Raises BadInput where neither does, or they contradict."""
    shape = found.shape
    if shape is not None and len(shape) != 4:
        raise BadInput(f"{model}: its input has the shape {shape}; expected (N, H, W, C) or (N, C, H, W)")
    if shape is not None and layout is None:
        layout = "nchw" if shape[1] in (1, 3) and shape[3] not in (1, 3) else "nhwc"
    layout = layout or "nchw"
    _, *sides = shape or (None, None, None, None)
    side, depth = (sides[1], sides[0]) if layout == "nchw" else (sides[0], sides[2])
    for what, asked, said in (("--size", size, side), ("--channels", channels, depth)):
        if asked is not None and said is not None and asked != said:
            raise BadInput(f"{what} {asked}: the input of {model} has {said} (as {layout}, shape {shape})")
    if (depth or channels or 3) not in (1, 3):
        raise BadInput(f"{model}: {depth} channels as {layout}, shape {shape}; expected 1 or 3, see --layout")
    side = side or size
    if side is None:
        raise BadInput(f"{model}: its file does not say the size of its images; give --size")
    if shape is not None and shape[0] not in (None, 1):
        raise BadInput(f"{model}: its batch is fixed at {shape[0]}; write it again with a batch that is free")
    depth = depth or channels or 3
    for option, values in (("--mean", mean), ("--std", std)):
        if len(values) not in (1, depth):
            raise BadInput(f"{option} has {len(values)} numbers; expected 1 or {depth}, one per channel")
    if 0.0 in std or not scale:
        raise BadInput("--scale and --std must not be 0")
    return Contract(
        input=found.input,
        output=found.output,
        layout=layout,
        takes=found.takes,
        size=side,
        channels=depth,
        batch=shape[0] if shape else None,
        outputs=found.outputs or 1,
        scale=scale,
        mean=mean,
        std=std,
    )


def _own_scores(model: Path, adopter: Any, contract: Contract, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """What the file itself gives, by its own library, image by image where its batch is fixed."""
    x = prepare(images, contract)
    step = contract.batch or IMAGES
    try:
        with process.quiet():
            raw = np.concatenate([adopter.scores(model, contract, x[at : at + step]) for at in range(0, len(x), step)])
    except Exception as error:  # a library raises anything
        raise BadInput(
            f"{model}: does not take {x.dtype} {x[:step].shape} ({contract.layout}): {str(error)[:300]}; "
            "see --layout, --size and --channels"
        ) from None
    if raw.ndim != 2 or len(raw) != len(images):
        raise BadInput(f"{model}: gives {raw.shape} for {len(images)} images; expected a row of scores per image")
    if not np.isfinite(raw).all():
        raise BadInput(f"{model}: its scores are not finite on these images; see --scale, --mean and --std")
    return raw


def _words(contract: Contract) -> str:
    """The contract for a person."""
    size, channels = contract.size, contract.channels
    pixels = "bytes"
    if contract.takes == "float32":
        pixels = f"(pixels x {contract.scale:.6g} - {_listed(contract.mean)}) / {_listed(contract.std)}"
    given = contract.gives if contract.gives == "probabilities" else f"logits ({contract.activation})"
    return (
        f"takes {size} x {size} px, {channels} channels, {contract.layout}, {pixels}; gives {contract.outputs} {given}"
    )


def _listed(values: tuple[float, ...]) -> str:
    return ",".join(f"{value:g}" for value in values)


def _numbers(option: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise BadInput(f"{option} is {text!r}; expected numbers with commas, as in 0.5,0.5,0.5") from None


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(adopt)
    errors.main(lambda: app(prog_name="medserve adopt"))
