"""Makes an artifact of a folder that holds a model: its certificates and its manifest, whoever made the model."""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from medserve import machine, plugins, process, stage, store
from medserve.certificate import check, unproven
from medserve.errors import BadInput, CannotRun
from medserve.models import Adopted, Artifact, Certificate, Checkpoint, Golden
from medserve.spec import Device, Precision
from medserve.tables import FORMATS, INPUT, OUTPUT


def further_runtimes(asked: Iterable[str], form: str) -> list[str]:
    """The runtimes beside a format's own that are asked for. Raises BadInput for one that does not read the format."""
    found = [name for name in dict.fromkeys(asked) if name != FORMATS[form].runtime]
    for name in found:
        if form not in (reads := plugins.literals("serve.runtimes", name)["READS"]):
            raise BadInput(f"--runtime {name} reads {', '.join(reads) or 'no model'}, not {form}")
    return found


def complete(
    folder: Path,
    name: str,
    form: str,
    checkpoint: Checkpoint,
    *,
    home: Path,
    data: Path,
    further: Sequence[str],
    precision: Precision = "float32",
    golden: Golden = "test",
    transplanted: str | None = None,
    adopted: Adopted | None = None,
    device: Device = "cpu",
) -> Artifact:
    """Certify the model in `folder`, whose golden file is there, on a device, and write the manifest.

    `home` is the folder of the checkpoint with the scores that it must give, `data` that of the unpacked images. A
    runtime of `further` that cannot run it has a certificate that says why.
    """
    row = FORMATS[form]
    model = folder / row.path
    if row.triton_platform is not None:
        (folder / "config.pbtxt").write_text(triton_config(row.triton_platform, checkpoint))
    words = ["-m", "export.verify", *map(str, (folder, home, data)), form]
    certificate = _certify(folder, row.runtime, words, [precision, golden, device])
    others = []
    for other in further:
        try:
            others.append(_certify(folder, other, words, [precision, golden, device]))
        except CannotRun as error:
            # Other runtimes keep their certificates.
            others.append(unproven(certificate.images, other, str(error)))
    graph = _onnx(model) if form == "onnx" else None
    artifact = Artifact(
        name=name,
        transplanted=transplanted,
        adopted=adopted,
        format=form,
        precision=precision,
        opset=graph and next(entry.version for entry in graph.opset_import if entry.domain in ("", "ai.onnx")),
        compiled_for=machine.target(row.compiled_by) if row.compiled_by else None,
        checkpoint=checkpoint,
        certificate=certificate,
        further=tuple(others),
        # How often each type of node occurs, the most frequent first: it explains unequal speeds.
        operators=dict(Counter(node.op_type for node in graph.graph.node).most_common()) if graph else {},
        model_bytes=sum(file.stat().st_size for file in model.parent.rglob("*") if file.is_file()),
        golden=golden,
        versions=machine.versions(),
        files=store.digests(folder, without=store.ARTIFACT),
    )
    check(artifact)
    store.write_json(folder / store.ARTIFACT, artifact)
    return artifact


def triton_config(platform: str, checkpoint: Checkpoint) -> str:
    """`config.pbtxt` for Triton's model repository; its TorchScript backend wants outputs named NAME__INDEX."""
    sides = ", ".join(map(str, (checkpoint.size, checkpoint.size, checkpoint.channels)))
    output = f"{OUTPUT}__0" if platform == "pytorch_libtorch" else OUTPUT
    return f"""platform: "{platform}"
max_batch_size: 128
input [ {{ name: "{INPUT}" data_type: TYPE_UINT8 dims: [ {sides} ] }} ]
output [ {{ name: "{output}" data_type: TYPE_FP32 dims: [ {len(checkpoint.classes)} ] }} ]
"""


def _certify(folder: Path, runtime: str, words: list[str], more: list[str]) -> Certificate:
    stage.ask([*words, runtime, *more], process.python_of(runtime))
    path = folder / "certificate.json"
    certificate = store.read_json(path, Certificate)
    path.unlink()
    return certificate


def _onnx(path: Path) -> Any:
    return plugins.need("onnx", "counting operators").load(path, load_external_data=False)
