"""`python -m export CHECKPOINT --format FORMAT --out FOLDER`: an artifact with its certificate, or nothing."""

import sys
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from safetensors.numpy import load_file

from export.artifact import complete, further_runtimes
from export.golden import write_test
from medserve import errors, plugins, stage, store
from medserve.errors import BadInput, CannotRun
from medserve.jobs import Prepared
from medserve.models import Artifact, Checkpoint, Golden
from medserve.process import python_of
from medserve.spec import Device, Precision
from medserve.tables import FORMATS, pick


def export(
    checkpoint_folder: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="Folder of a trained checkpoint.")],
    form: Annotated[str, typer.Option("--format", help="Format of the model; `medserve list` names them.")],
    out: Annotated[Path, typer.Option(help="Folder of the new artifact.")],
    framework: Annotated[
        str | None,
        typer.Option(help="Transplant the weights into this one's network.", show_default="the one that trained it"),
    ] = None,
    precision: Annotated[
        Precision, typer.Option(help="All but float32 are lossy; int8 is calibrated on the training split.")
    ] = "float32",
    device: Annotated[
        Device, typer.Option(help="Where it is certified, and what machine code is compiled for.")
    ] = "cpu",
    runtime: Annotated[
        list[str] | None, typer.Option(help="Certify it for this one too, beside the format's own; repeatable.")
    ] = None,
    golden: Annotated[
        Golden, typer.Option(help="Images of golden.npz: 32 of the test split, or drawn ones that show no patient.")
    ] = "test",
) -> None:
    """Export a checkpoint and prove on the whole test split that the artifact computes the same function.

    Any framework opens any checkpoint; its artifacts must give the scores of the framework that trained it.

    An artifact carries 32 golden images, by which a server checks itself. By default they are of the test split, so
    everyone who gets the artifact gets these patients' images; --golden drawn takes drawn images instead. Either way it
    carries the scores of all test images, without the images. Its last line is the digest for `serve --sha256`.

    Example: medserve export runs/quick/checkpoints/synthetic-28-cnn-pytorch-s0 --format onnx --out artifacts/cells
    """
    errors.check_name("artifact", out.name)
    checkpoint = store.read_checkpoint(checkpoint_folder)
    framework = framework or checkpoint.framework
    exporter = plugins.load("export.frameworks", framework)
    row = pick(FORMATS, "format", form)
    if form not in exporter.WRITES:
        others = [name for name in plugins.names("export.frameworks") if form in _writes(name)]
        raise CannotRun(
            f"{framework} does not export to {form}; it writes {', '.join(exporter.WRITES)}; {' and '.join(others)} "
            f"can, with the same weights: add --framework {others[0]}"
        )
    if (out / store.ARTIFACT).is_file():
        print(f"{out}: replaces the artifact that is there", file=sys.stderr)
    if precision != "float32" and form not in getattr(exporter, precision.upper(), ()):
        offered = ", ".join(getattr(exporter, precision.upper(), ())) or "no format"
        raise CannotRun(f"{framework} does not export {form} in {precision}; it writes {precision} in {offered}")
    if precision == "tf32" and device == "cpu":
        raise CannotRun("TF32 is a way of NVIDIA's GPUs to compute, which a processor has not; use --device cuda")
    further = further_runtimes(runtime or (), form)
    data = _test_split(checkpoint)
    with store.new_folder(out) as partial:
        path = partial / row.path
        path.parent.mkdir()
        weights = load_file(checkpoint_folder / "weights.safetensors")
        exporter.export(checkpoint, weights, form, path, "float32" if form == "onnx" else precision, device)
        if form == "onnx" and precision in ("int8", "float16"):
            stage.ask(
                ["-m", "export.quantise", str(path), str(data / "train_images.npy"), precision],
                python_of("onnx_runtime"),
            )
        if golden == "test":
            write_test(partial, checkpoint_folder, data)
        else:
            stage.ask(["-m", "export.golden", str(partial), str(checkpoint_folder)], python_of(checkpoint.framework))
        artifact = complete(
            partial,
            out.name,
            form,
            checkpoint,
            home=checkpoint_folder,
            data=data,
            further=further,
            precision=precision,
            golden=golden,
            transplanted=framework if framework != checkpoint.framework else None,
            device=device,
        )
    _report(artifact, out)
    if not artifact.certificate.valid:
        where = "the network itself is the trainer's function, so it is the exporter or the runtime that changed it"
        try:
            stage.ask(["-m", "train", "parity", str(checkpoint_folder), "--framework", framework])
        except (BadInput, CannotRun) as error:
            where = str(error)
        raise CannotRun(f"{out.name}: no valid certificate: {artifact.certificate.reason}; {where}")
    print(f"{out / store.ARTIFACT}: SHA-256 {store.sha256(out / store.ARTIFACT)}", file=sys.stderr)


def _writes(framework: str) -> tuple[str, ...]:
    return plugins.literals("export.frameworks", framework)["WRITES"]


def _test_split(checkpoint: Checkpoint) -> Path:
    """The folder of the unpacked data set. Raises BadInput when it is not the data that the checkpoint was made on."""
    words = ["-m", "train", "data", "prepare", checkpoint.unpacked or checkpoint.dataset]
    words += ["--size", str(checkpoint.size), "--json"]
    words += ["--unofficial"] if checkpoint.unofficial else []
    prepared = msgspec.json.decode(stage.ask(words), type=Prepared)
    if (prepared.digest, prepared.classes) != (checkpoint.data_digest, checkpoint.classes):
        raise BadInput(
            f"{checkpoint.dataset} at {checkpoint.size} px is not the data that {checkpoint.name} was trained on; "
            "train it again"
        )
    return Path(prepared.folder)


def _report(artifact: Artifact, out: Path) -> None:
    for proof in artifact.certificates:
        error = "not finite" if proof.max_abs is None else f"{proof.max_abs:.1e}"
        state = "valid" if proof.valid else f"NOT valid: {proof.reason}"
        if proof.accuracy_change is not None and proof.accuracy is not None:
            low, high = (end * 100 for end in proof.accuracy_change)
            state = f"accuracy {proof.accuracy * 100:.2f} %, changed by {low:+.2f} to {high:+.2f} points, {state}"
        print(
            f"{out}: {artifact.format} by {proof.runtime}, largest |difference| {error} on {proof.images} test images, "
            f"{proof.decisions_changed} decisions changed, certificate {state}",
            file=sys.stderr,
        )


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(export)
    errors.main(lambda: app(prog_name="medserve export"))
