"""The TOML file of a study: reads it, and says what it may hold."""

import re
import tomllib
from pathlib import Path

import msgspec

from medserve import document, matrix, measures, store, tables
from medserve.errors import BadInput, unknown
from medserve.models import Artifact
from medserve.study import Model, Study

STUDIES = Path(__file__).parent / "studies"

GIVEN: dict[str, object] = {
    "name": "mine",
    "title": "My study",
    "datasets": ["synthetic"],
    "sizes": [28],
    "architectures": ["cnn"],
    "frameworks": ["pytorch", "keras_tf", "flax_nnx"],
    "formats": ["native", "onnx"],
    "recipe.epochs": 2,
    "measure.profiles": ["in-process-1", "closed-1"],
}
"""What the template asks for as it is."""
EXAMPLES: dict[str, object] = {
    "runtimes": ["onnx_runtime", "openvino_cpu"],
    "deadline_ms": 50.0,
    "trained_in": "pytorch",
    "window": [-1000.0, 400.0],
    "target_accuracy": 0.9,
    "machines": ["small", "large"],
    "variants": {"small_batch": {"batch": 32, "epochs": 4}},
    "serves": ["small_batch"],
    "epochs_at": {"64": 2},
    "recipe.initial": "imagenet",
    "measure.mode": "open-loop",
    "measure.rate": 100.0,
    "measure.load": 0.8,
    "measure.arrivals": "poisson",
    "measure.burst": 8,
    "measure.users": 4,
    "measure.gap_seconds": 0.01,
    "measure.batch": 8,
    "measure.payload": "json",
    "measure.sizes": [28],
    "measure.seconds": 5.0,
    "measure.warmup_seconds": 1.0,
    "measure.requests": 460,
    "objective.rate": 100.0,
    "objective.p50_ms": 2.0,
    "objective.p90_ms": 3.0,
    "objective.p99_ms": 5.0,
    "objective.accuracy": 0.9,
    "models.artifact": "mine.onnx",
    "servers.name": "fastapi",
    "servers.url": "http://127.0.0.1:8000",
    "servers.command": ["uvicorn", "mine:app", "--port", "{port}"],
    "servers.variables": {"MODEL": "{file}"},
    "servers.environment": "fastapi",
    "servers.needs": "the Debian package of it",
    "servers.path": "/predict",
    "servers.cores": 2,
    "environments.name": "fastapi",
    "environments.packages": ["fastapi==0.165.0", "onnxruntime==1.31.1"],
    "environments.constraints": "constraints.txt",
    "environments.python": "python3.12",
    "environments.runs": ["saved_model"],
    "claims.who": "A. Author, 2026",
    "claims.what": "PyTorch is faster than JAX",
    "claims.where": "Table 2",
    "claims.test": "faster",
    "claims.first": {"framework": "pytorch"},
    "claims.second": {"framework": "flax_nnx"},
    "claims.why": "the networks are not named",
}
"""Values that the template shows commented out, of fields whose default is none or empty."""


def names() -> list[str]:
    """The studies that come with the program."""
    return sorted(path.stem for path in STUDIES.glob("*.toml"))


def read(name: str) -> Study:
    """A study by its name, from a TOML file, or that of a run, by its folder.

    Raises BadInput that names the file and all that is wrong in it.
    """
    if (run := folder_of(name)) is not None:
        return store.read_json(run / "study.json", Study)
    path = Path(name) if name.endswith(".toml") else STUDIES / f"{name}.toml"
    if not path.is_file():
        if name.endswith(".toml"):
            raise BadInput(f"{name}: no such study file; `medserve study new` prints one")
        if Path(name).exists():
            raise BadInput(f"{name}: no study; give a TOML file, the folder of a run, or one of: {', '.join(names())}")
        raise unknown("study", name, names())
    try:
        told = tomllib.loads(path.read_text())
        study = document.convert(told, Study)
        for given in study.datasets:
            if tables.is_path(given) and not Path(given).exists():
                raise BadInput(
                    f"data set {given}: no such folder or file, from the folder that you are in ({Path.cwd()})"
                )
        study = msgspec.structs.replace(study, models=tuple(map(_adopted, study.models)))
        if "batch_sizes" not in told:
            study = msgspec.structs.replace(study, batch_sizes=measures.batches(study))
        matrix.plan(study)
    except BadInput as error:
        raise BadInput(*(f"{path}: {line}" for line in error.lines)) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        twice = re.match(r"Cannot declare \('(\w+)',\) twice", str(error))
        words = f"; for several of them write [[{twice[1]}]] above each" if twice else ""
        raise BadInput(f"{path}: {error}{words}") from None
    return study


def _adopted(model: Model) -> Model:
    """A model with what its artifact says. Raises BadInput for another artifact than the study names."""
    path = Path(model.artifact) / store.ARTIFACT
    if not path.is_file():
        raise BadInput(
            f"[[models]] {model.artifact}: no artifact; give the folder that `medserve adopt` made, from the folder "
            f"that you are in ({Path.cwd()})"
        )
    manifest = store.read_json(path, Artifact)
    if manifest.adopted is None:
        raise BadInput(f"{path}: was exported here, which a study does by itself; [[models]] are of `medserve adopt`")
    found = Model(
        artifact=model.artifact,
        name=manifest.name,
        dataset=manifest.checkpoint.dataset,
        format=manifest.format,
        size=manifest.checkpoint.size,
        digest=store.sha256(path),
    )
    for field in ("name", "dataset", "format", "size", "digest"):
        if (asked := getattr(model, field)) and asked != getattr(found, field):
            raise BadInput(f"{path}: its {field} is {getattr(found, field)}, and the study asks for {asked}")
    return found


def folder_of(name: str) -> Path | None:
    """The folder of a run, where `name` is one."""
    return Path(name) if (Path(name) / "study.json").is_file() else None


def template() -> str:
    """A commented study with every field."""
    head = "# A study: `medserve study check FILE` says what it asks for, `medserve run FILE` does it.\n\n"
    return head + document.template(Study, GIVEN, EXAMPLES)


def reference() -> str:
    """Every field of a study, as Markdown."""
    return document.reference(Study, "Top of the file")
