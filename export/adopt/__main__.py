"""`python -m export.adopt MODEL --out FOLDER`: a certified artifact of a model that was made elsewhere."""

import hashlib
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
import numpy as np
import typer
from numpy.typing import NDArray

from export.adopt import Found
from export.adopt._images import Given, read
from export.golden import IMAGES, draw
from medserve import errors, machine, plugins, process, stage, store
from medserve.adopted import prepare, probabilities
from medserve.certificate import LIMIT, check, unproven
from medserve.errors import BadInput, CannotRun
from medserve.models import Adopted, Artifact, Certificate, Checkpoint, Contract, Golden, Recipe, Scores
from medserve.scores import score
from medserve.study import ADOPTED
from medserve.tables import DATASETS, FORMATS, pick, title

DRAWN = 64
"""Images that are drawn where none are given."""
SURE = 1e-3
"""What gives numbers that are not negative, and add up to 1 within this, gives probabilities."""
QUANTILE = 1.96
"""The two-sided 95 % quantile of the standard normal distribution."""


class _Made(NamedTuple):
    """What is known of a model: where it is from, what it gives for which images, and which of them are shown.

    `images` is what was asked for, `scores` float32 (N, classes) of the file itself, `shown` golden images with theirs.
    """

    source: Adopted
    parameters: int
    given: Given
    scores: NDArray[np.float32]
    names: tuple[str, ...]
    images: str | None
    golden: Golden
    shown: tuple[NDArray[np.uint8], NDArray[np.float32]]


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
        Literal["softmax", "sigmoid"] | None, typer.Option(help="Of logits.", show_default="sigmoid of a single one")
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
    row = pick(FORMATS, "format", form)
    further_runtimes = [other for other in dict.fromkeys(runtime or ()) if other != row.runtime]
    for other in further_runtimes:
        if form not in (reads := plugins.literals("serve.runtimes", other)["READS"]):
            raise BadInput(f"--runtime {other} reads {', '.join(reads) or 'no model'}, not {form}")
    digest = _digest(model)
    if (out / store.ARTIFACT).is_file():
        print(f"{out}: replaces the artifact that is there", file=sys.stderr)
    print(f"{model}: executes this {title(name)} model, SHA-256 {digest}", file=sys.stderr)
    found = adopter.inspect(model, output)
    contract = _contract(model, found, size, channels, layout, scale, _numbers("--mean", mean), _numbers("--std", std))
    given = Given(draw(DRAWN, contract.size)[..., : contract.channels])
    if images is not None:
        given = read(images, contract.size if found.shape or size else None, contract.channels)
        contract = msgspec.structs.replace(contract, size=given.images.shape[1])
    raw = _own_scores(model, adopter, contract, given.images)
    single = raw.shape[1] == 1
    if single and activation == "softmax":
        raise BadInput(f"{model}: gives one number per image, of which a softmax is always 1; use --activation sigmoid")
    looks = (raw >= 0).all() and ((raw <= 1).all() if single else (abs(raw.sum(1) - 1) < SURE).all())
    contract = msgspec.structs.replace(
        contract,
        outputs=raw.shape[1],
        gives=gives or ("probabilities" if looks else "logits"),
        activation=activation or ("sigmoid" if single else "softmax"),
    )
    scores = probabilities(raw, contract).astype(np.float32)
    names = tuple(filter(None, classes.split(","))) or given.classes
    names = names or tuple(f"class {place}" for place in range(contract.classes))
    _check(model, scores, given, names, reference, anyway)
    source = Adopted(
        source=model.name, digest=digest, contract=contract, reference="drawn" if images is None else "given"
    )
    chosen = np.linspace(0, len(scores) - 1, min(IMAGES, len(scores))).astype(int)
    shown = given.images[chosen], scores[chosen]
    if golden == "drawn":
        drawn = draw(IMAGES, contract.size)[..., : contract.channels]
        shown = drawn, probabilities(_own_scores(model, adopter, contract, drawn), contract).astype(np.float32)
    made = _Made(source, found.parameters, given, scores, names, images, golden, shown)
    artifact = _write(out, made, form, further_runtimes, lambda path: adopter.write(model, contract, form, path))
    print(f"{out}: {_words(contract)}", file=sys.stderr)
    if (share := artifact.checkpoint.test.accuracy) is not None:
        commonest = _commonest(given.labels, contract.classes)
        print(
            f"{out}: right on {share * 100:.2f} % of {len(scores)} images, where the commonest class alone has "
            f"{commonest * 100:.2f} %",
            file=sys.stderr,
        )
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


def _check(
    model: Path,
    scores: NDArray[np.float32],
    given: Given,
    names: tuple[str, ...],
    reference: Path | None,
    anyway: bool,
) -> None:
    """Raise BadInput when the scores of the file are not those that are expected of it."""
    count, found = scores.shape
    if len(names) != found:
        raise BadInput(f"{model}: gives scores of {found} classes, and there are {len(names)}: {', '.join(names[:8])}")
    hint = "is it prepared as it was trained? see --layout, --scale, --mean, --std and --gives"
    if reference is not None:
        expected = np.load(reference, allow_pickle=False)
        if expected.shape != scores.shape:
            raise BadInput(f"{reference}: {expected.shape}; expected {scores.shape}, a row per image")
        error = float(np.abs(expected - scores).max())
        if not error <= LIMIT:
            row = int(np.abs(expected - scores).max(1).argmax())
            raise BadInput(f"{model}: differs from {reference.name} by {error:.2e} (image {row}); {hint}")
    if given.labels is None:
        return
    if given.labels.min() < 0 or given.labels.max() >= found:
        raise BadInput(
            f"label {given.labels.min()} or {given.labels.max()}: the model has the classes 0 to {found - 1}"
        )
    share = float((scores.argmax(1) == given.labels).mean())
    commonest = _commonest(given.labels, found)
    # Of the normal approximation: a model that is better than that in truth is very rarely refused.
    above = share + QUANTILE * np.sqrt(commonest * (1 - commonest) / count)
    if above < commonest and not anyway:
        raise BadInput(
            f"{model}: right on {share * 100:.1f} % of {count} images, where the commonest class alone has "
            f"{commonest * 100:.1f} %; {hint}; --anyway adopts it all the same"
        )


def _commonest(labels: NDArray[np.int64] | None, classes: int) -> float:
    """The share of the commonest class."""
    return 0.0 if labels is None else float(np.bincount(labels, minlength=classes).max() / len(labels))


def _write(
    out: Path, made: _Made, form: str, further_runtimes: list[str], write_model: Callable[[Path], None]
) -> Artifact:
    row = FORMATS[form]
    with store.new_folder(out) as partial, TemporaryDirectory() as scratch:
        path = partial / row.path
        path.parent.mkdir()
        with process.quiet():
            write_model(path)
        np.savez(partial / "golden.npz", images=made.shown[0], scores=made.shown[1])
        np.save(partial / "reference.npy", made.scores)
        data, home = Path(scratch) / "data", Path(scratch) / "checkpoint"
        data.mkdir()
        home.mkdir()
        np.save(data / "test_images.npy", made.given.images)
        np.save(home / "test_scores.npy", made.scores)
        if made.given.labels is not None:
            for labels in (data / "test_labels.npy", home / "test_labels.npy", partial / "labels.npy"):
                np.save(labels, made.given.labels)
        checkpoint = _checkpoint(out.name, made, store.digests(home, without="checkpoint.json"))
        store.write_json(home / "checkpoint.json", checkpoint)
        words = ["-m", "export.verify", *map(str, (partial, home, data)), form]
        certificate = _certify(partial, [*words, row.runtime, "float32", made.golden])
        further = []
        for name in further_runtimes:
            try:
                further.append(_certify(partial, [*words, name, "float32", made.golden]))
            except CannotRun as error:
                further.append(unproven(certificate.images, name, str(error)))
        artifact = Artifact(
            name=out.name,
            adopted=made.source,
            format=form,
            opset=None,
            compiled_for=machine.target(row.compiled_by) if row.compiled_by else None,
            checkpoint=checkpoint,
            certificate=certificate,
            further=tuple(further),
            model_bytes=sum(file.stat().st_size for file in path.parent.rglob("*") if file.is_file()),
            golden=made.golden,
            versions=machine.versions(),
            files=store.digests(partial, without=store.ARTIFACT),
        )
        check(artifact)
        store.write_json(partial / store.ARTIFACT, artifact)
    return artifact


def _checkpoint(name: str, made: _Made, files: dict[str, str]) -> Checkpoint:
    """The manifest of what was not trained here: a network that is known by its scores alone."""
    labels, scores, contract = made.given.labels, made.scores, made.source.contract
    try:
        test = None if labels is None else score(labels, scores)
    except BadInput:  # a class without an image has no AUC
        right = float((scores.argmax(1) == labels).mean())
        test = Scores(accuracy=right, balanced_accuracy=None, auc=None, images=len(scores))
    # Accuracies on other images, or by other labels, are not comparable.
    known = b"" if labels is None else labels.tobytes()
    digest = hashlib.sha256(made.given.images.tobytes() + known).hexdigest()
    own = made.images if made.images in DATASETS else f"own-{digest[:8]}"
    return Checkpoint(
        name=name,
        dataset="drawn" if made.images is None else str(own),
        size=contract.size,
        channels=contract.channels,
        classes=made.names,
        architecture=name,
        framework=ADOPTED,
        recipe=Recipe(),
        parameters=made.parameters,
        data_digest=digest,
        unofficial=False,
        licence="",
        history=(),
        test=test or Scores(accuracy=None, balanced_accuracy=None, auc=None, images=len(scores)),
        train_seconds=0.0,
        images_per_second=0.0,
        compile_seconds=0.0,
        versions={},
        files=files,
    )


def _certify(folder: Path, words: list[str]) -> Certificate:
    stage.ask(words)
    path = folder / "certificate.json"
    certificate = store.read_json(path, Certificate)
    path.unlink()
    return certificate


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
