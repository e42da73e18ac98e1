"""Tables of data sets, architectures, formats and load profiles. A new entry needs a new row here only."""

from collections.abc import Mapping
from typing import TypeVar

from medserve.errors import unknown
from medserve.spec import Architecture, DatasetSpec, LoadProfile, Noun, Trap

OPSET = 18
"""The ONNX opset of every export: the newest that all three converters support (tf2onnx is the limit)."""

ROOFLINE = 0.7
"""Highest valid rate, as a share of the rate that the load generator reaches with the null runtime.

Above it, the latency of the load generator is a part of what is measured.
"""

INPUT = "image"
OUTPUT = "probabilities"


class Format(Noun, frozen=True, kw_only=True):
    """A file format of artifacts. `path` is relative to the artifact's folder, `runtime` is the default runtime.

    A format that is `compiled_by` a distribution depends on the machine and on the distribution's version.
    """

    name: str
    path: str
    runtime: str
    triton_platform: str | None
    compiled_by: str | None = None


DATASETS = {
    row.name: row
    for row in (
        DatasetSpec(
            name="synthetic",
            title="Synthetic cells (procedural)",
            classes=8,
            class_digest="64bff723de6e3987af37d9ea1fb60419b65a6a051b50010f20facd87f71b40a9",
            train=4096,
            val=512,
            test=1024,
            sizes=(),
            licence="CC0 1.0 (drawn by this program)",
        ),
        DatasetSpec(
            name="bloodmnist",
            title="BloodMNIST",
            classes=8,
            class_digest="f781bdba5352e4a641223f8eb85717ca889ff59898dbf32f0033f994e89059e8",
            train=11_959,
            val=1_712,
            test=3_421,
            sizes=(28, 64, 128, 224),
            licence="CC BY 4.0",
        ),
        DatasetSpec(
            name="dermamnist",
            title="DermaMNIST",
            classes=7,
            class_digest="6f71991b4bb7985383ed14fe9760b99ecf14f9b654d36de8dbe5199c6837bd9a",
            train=7_007,
            val=1_003,
            test=2_005,
            sizes=(28, 64, 128, 224),
            licence="CC BY-NC 4.0 (non-commercial)",
        ),
        DatasetSpec(
            name="pathmnist",
            title="PathMNIST",
            classes=9,
            class_digest="b255b5802ade263ca4771c983b1a6d31533a7f149f4bae0428d92415325449ee",
            train=89_996,
            val=10_004,
            test=7_180,
            sizes=(28, 64, 128, 224),
            licence="CC BY 4.0",
        ),
    )
}

ARCHITECTURES = {
    row.name: row
    for row in (
        Architecture(
            name="cnn",
            family="cnn",
            widths=(32, 64, 128),
            depths=(2, 2, 2),
            features=128,
            backbone_parameters=287_456,
            multiply_adds=1_893_040_128,
            mean=(0.5, 0.5, 0.5),
            std=(0.5, 0.5, 0.5),
            last_stage=("stages.2",),
        ),
        Architecture(
            name="resnet18",
            family="resnet",
            stem=64,
            widths=(64, 128, 256, 512),
            depths=(2, 2, 2, 2),
            strides=(1, 2, 2, 2),
            expansions=(1, 1, 1, 1),
            features=512,
            backbone_parameters=11_176_512,
            multiply_adds=1_813_561_344,
            mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225),
            last_stage=("layer4",),
        ),
        # v1.5: the stride is in the 3x3 convolution.
        Architecture(
            name="resnet50",
            family="resnet",
            stem=64,
            widths=(64, 128, 256, 512),
            depths=(3, 4, 6, 3),
            strides=(1, 2, 2, 2),
            expansions=(4, 4, 4, 4),
            features=2048,
            backbone_parameters=23_508_032,
            multiply_adds=4_087_136_256,
            mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225),
            last_stage=("layer4",),
        ),
        # The original: the stride is in the first 1x1 convolution.
        Architecture(
            name="resnet50_v1",
            family="resnet",
            stem=64,
            widths=(64, 128, 256, 512),
            depths=(3, 4, 6, 3),
            strides=(1, 2, 2, 2),
            expansions=(4, 4, 4, 4),
            stride_first=True,
            features=2048,
            backbone_parameters=23_508_032,
            multiply_adds=3_855_925_248,
            mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225),
            last_stage=("layer4",),
        ),
        Architecture(
            name="efficientnet_v2_s",
            family="efficientnet_v2",
            stem=24,
            widths=(24, 48, 64, 128, 160, 256),
            depths=(2, 4, 4, 6, 9, 15),
            strides=(1, 2, 2, 2, 1, 2),
            expansions=(1, 4, 4, 4, 6, 6),
            fused=3,
            features=1280,
            drop_out=0.2,
            stochastic_depth=0.2,
            backbone_parameters=20_177_488,
            multiply_adds=2_848_615_872,
            mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225),
            head="classifier",
            last_stage=("features.6", "features.7"),
        ),
        Architecture(
            name="efficientnet_v2_l",
            family="efficientnet_v2",
            stem=32,
            widths=(32, 64, 96, 192, 224, 384, 640),
            depths=(4, 7, 7, 10, 19, 25, 7),
            strides=(1, 2, 2, 2, 1, 2, 1),
            expansions=(1, 4, 4, 4, 6, 6, 6),
            fused=3,
            features=1280,
            drop_out=0.4,
            stochastic_depth=0.2,
            backbone_parameters=117_234_272,
            multiply_adds=12_229_908_544,
            mean=(0.5, 0.5, 0.5),
            std=(0.5, 0.5, 0.5),
            head="classifier",
            last_stage=("features.7", "features.8"),
        ),
    )
}

FORMATS = {
    row.name: row
    for row in (
        Format(name="onnx", path="1/model.onnx", runtime="onnx_runtime", triton_platform="onnxruntime_onnx"),
        Format(name="torchscript", path="1/model.pt", runtime="torchscript", triton_platform="pytorch_libtorch"),
        Format(name="saved_model", path="1/saved_model.pb", runtime="saved_model", triton_platform=None),
        Format(
            name="aotinductor", path="1/model.pt2", runtime="aotinductor", triton_platform=None, compiled_by="torch"
        ),
        Format(name="tflite", path="1/model.tflite", runtime="litert", triton_platform=None),
        Format(name="stablehlo", path="1/model.stablehlo", runtime="stablehlo", triton_platform=None),
    )
}

TIMING_MISTAKES: dict[Trap, str] = {
    "predict": "Keras' predict, which is made for whole data sets, in place of the model's function",
    "unsynchronised": "the clock stops when the call returns, not when the scores have arrived",
    "compile-inside": "the mean of the first hundred calls, including compilation",
    "one-image": "the same image in every call",
    "default-threads": "one thread per core, the default of each framework",
    "json": "images and scores as JSON numbers",
}
"""Common mistakes of published comparisons. Each has a profile below, which shows how it changes a ranking."""

PROFILES = {
    row.name: row
    for row in (
        # Batch sizes.
        *(
            LoadProfile(name=f"in-process-{batch}", mode="in-process", batch=batch, seconds=5.0, warmup_seconds=1.0)
            for batch in (1, 2, 4, 8, 16, 32, 64, 128)
        ),
        # Timing mistakes in process.
        *(
            LoadProfile(
                name=f"in-process-1-{mistake}",
                mode="in-process",
                trap=mistake,
                seconds=5.0,
                warmup_seconds=0.0 if mistake == "compile-inside" else 1.0,
            )
            for mistake in TIMING_MISTAKES
            if mistake != "json"
        ),
        LoadProfile(name="closed-1-json", mode="closed-loop", trap="json", seconds=10.0, warmup_seconds=2.0),
        # Numbers of users.
        *(
            LoadProfile(name=f"closed-{users}", mode="closed-loop", users=users, seconds=10.0, warmup_seconds=2.0)
            for users in (1, 2, 4, 8, 16, 32)
        ),
        # A single user who pauses after each response.
        *(
            LoadProfile(
                name=f"idle-{milliseconds}ms",
                mode="closed-loop",
                gap_seconds=milliseconds / 1000,
                seconds=seconds,
                warmup_seconds=2.0,
            )
            for milliseconds, seconds in ((10, 10.0), (100, 20.0), (1000, 60.0))
        ),
        *(
            LoadProfile(name=f"open-{rate}", mode="open-loop", rate=float(rate), seconds=20.0, warmup_seconds=2.0)
            for rate in (10, 50, 200, 500)
        ),
        *(
            LoadProfile(
                name=f"poisson-{rate}",
                mode="open-loop",
                arrivals="poisson",
                rate=float(rate),
                seconds=20.0,
                warmup_seconds=2.0,
            )
            for rate in (10, 50, 200, 500)
        ),
        # As many requests per second as open-50, eight at a time.
        LoadProfile(
            name="bursts-50",
            mode="open-loop",
            arrivals="bursts",
            burst=8,
            rate=50.0,
            seconds=20.0,
            warmup_seconds=2.0,
        ),
    )
}


Row = TypeVar("Row")


def scores_file(form: str, runtime: str) -> str:
    """The file of a runtime's test scores in an artifact's folder; `scores.npy` is that of the default runtime."""
    return "scores.npy" if runtime == FORMATS[form].runtime else f"scores.{runtime}.npy"


def pick(table: Mapping[str, Row], kind: str, name: str) -> Row:
    """The row of that name. Raises BadInput that lists the known names."""
    if name not in table:
        raise unknown(kind, name, table)
    return table[name]
