"""What is trained and exported: data sets, networks, recipes, checkpoints, certificates, artifacts."""

from collections.abc import Iterator
from statistics import fmean
from typing import Annotated, Literal

from msgspec import Meta, field, structs

from medserve.spec import SCHEMA, Count, Device, Name, NotNegative, Noun, Positive, Precision, ShareBelowOne, Window

Split = Literal["train", "val", "test"]
Golden = Literal["test", "drawn"]
Task = Literal["multi-class", "binary", "ordinal", "multi-label"]
"""What the labels of a data set are: one class per image, of several, two or ordered ones; or several per image."""


class DatasetSpec(Noun, frozen=True, kw_only=True):
    """One data set. `sizes` in pixels, empty when any size can be drawn; counts are images per split.

    `classes` is the number of classes, of labels per image where the task is `multi-label`.
    `class_digest` is `medserve.certificate.class_digest` of its class names, empty where any names will do.
    """

    name: str
    title: str
    task: Task = "multi-class"
    classes: int
    train: int
    val: int
    test: int
    sizes: tuple[int, ...]
    channels: int = 3
    licence: str
    class_digest: str = ""

    def count(self, split: Split) -> int:
        """Images in a split."""
        return int(getattr(self, split))


class Architecture(Noun, frozen=True, kw_only=True):
    """A network as numbers, no graph. Tuples hold one number a stage; what a family does not read is left empty.

    It takes images of so many `channels`; the first convolution has kernels of `first_kernel` pixels.
    `backbone_parameters` counts all trainable numbers but the linear head's; `multiply_adds` those of one image of
    224 px in colour in convolutions and dense layers, without the head. The first `fused` stages are of fused blocks.
    `stochastic_depth` is what the blocks' rates grow towards. `mean` and `std` are of pixels from 0 to 1. `head` and
    `last_stage` are the canonical names of these layers, without what follows.
    """

    name: str
    family: str
    channels: int = 3
    first_kernel: int = 3
    stem: int = 0
    widths: tuple[int, ...]
    depths: tuple[int, ...]
    strides: tuple[int, ...] = ()
    expansions: tuple[int, ...] = ()
    stride_first: bool = False
    fused: int = 0
    features: int
    drop_out: float = 0.0
    stochastic_depth: float = 0.0
    backbone_parameters: int
    multiply_adds: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    head: str = "fc"
    last_stage: tuple[str, ...] = ()

    def parameters(self, classes: int, hidden: int = 0) -> int:
        """Numbers of a network with `classes` outputs, behind a dense layer where it is not 0: all are held to it."""
        features = hidden or self.features
        return self.backbone_parameters + hidden * (self.features + 1) + (features + 1) * classes

    def for_channels(self, channels: int) -> "Architecture":
        """The same network for images of so many channels: only its first convolution is another one."""
        if channels == self.channels:
            return self
        fewer = (self.channels - channels) * (self.stem or self.widths[0]) * self.first_kernel**2
        return structs.replace(
            self,
            channels=channels,
            backbone_parameters=self.backbone_parameters - fewer,
            mean=(fmean(self.mean),) * channels,
            std=(fmean(self.std),) * channels,
        )

    def stages(self) -> Iterator[tuple[int, int, int, int]]:
        """Width, depth, stride and expansion of each stage."""
        return zip(self.widths, self.depths, self.strides, self.expansions, strict=True)

    def drop_rates(self) -> Iterator[float]:
        """Rate of stochastic depth of each block: from 0, linearly towards `stochastic_depth` behind the last."""
        blocks = sum(self.depths)
        return (self.stochastic_depth * block / blocks for block in range(blocks))


class Recipe(Noun, frozen=True, kw_only=True):
    """How a network is trained. One-cycle AdamW: rates as in Smith & Topin (2018) with cosine annealing.

    What each field means stands in `study_fields.toml`.
    """

    optimiser: Literal["adamw"] = "adamw"
    schedule: Literal["one-cycle"] = "one-cycle"
    learning_rate: Positive = 3e-3
    weight_decay: NotNegative = 0.05
    label_smoothing: ShareBelowOne = 0.1
    batch: Annotated[int, Meta(ge=2)] = 128
    epochs: Count = 30
    flips: bool = True
    transposes: bool = True
    shift: Annotated[int, Meta(ge=0)] = 2
    seed: Annotated[int, Meta(ge=0, lt=2**32)] = 0
    initial: str = ""
    trains: Literal["all", "last stage", "head"] = "all"
    head_epochs: Annotated[int, Meta(ge=0)] = 0
    head_rate: Positive = 1e-3
    hidden: Annotated[int, Meta(ge=0)] = 0
    drop_out: ShareBelowOne = 0.0
    balanced: bool = False


class Epoch(Noun, frozen=True, kw_only=True):
    """One line of a training history: mean training loss, validation accuracy, seconds of the training steps."""

    epoch: int
    loss: float
    val_accuracy: float
    seconds: float
    cpu_seconds: float | None = None
    images_per_second: float


class Scores(Noun, frozen=True, kw_only=True):
    """Scores of one split, as MedMNIST defines them, see `medserve.scores.score`.

    They are null where there are no labels.
    """

    accuracy: float | None
    balanced_accuracy: float | None
    auc: float | None
    images: int


class Computation(Noun, frozen=True, kw_only=True):
    """What the convolutions and dense layers of a network compute and move in float32, for one image.

    `activation_bytes` are the input and the output of every layer, each moved once; what lies between the layers is
    taken to be computed on the way. `largest_bytes` is the most that one layer reads and writes of them.
    """

    multiply_adds: int
    weight_bytes: int
    activation_bytes: int
    largest_bytes: int


class Checkpoint(Noun, frozen=True, kw_only=True):
    """`checkpoint.json`: what was trained, on what, how, and how well. `files` maps a relative path to its SHA-256.

    `initial_digest` is the SHA-256 of the weights that it began with, null where they were drawn.
    `images_per_second` is the median over steps; `compile_seconds` is the first step's excess over the median step.
    `computation` is null in older manifests, and the `task` is `multi-class` there. Where it is `multi-label`,
    `classes` are the labels, whose probabilities do not exclude one another. `unpacked` is the folder of one's own
    images in the data root, empty for a data set of the table; `window` that of their files of more than 8 bits.
    """

    schema: int = SCHEMA
    name: Name
    dataset: str
    size: int
    channels: int = 3
    classes: tuple[str, ...]
    task: Task = "multi-class"
    architecture: str
    framework: str
    recipe: Recipe
    initial_digest: str | None = None
    parameters: int
    computation: Computation | None = None
    data_digest: str
    unpacked: str = ""
    window: Window | None = None
    unofficial: bool
    licence: str
    history: tuple[Epoch, ...]
    test: Scores
    train_seconds: float
    images_per_second: float
    compile_seconds: float
    peak_memory_bytes: int | None = None
    versions: dict[str, str]
    files: dict[str, str]


class Contract(Noun, frozen=True, kw_only=True):
    """What a model that was made elsewhere takes and gives, by the names in its file.

    It takes (pixels x `scale` - `mean`) / `std` per channel, which a graph computes as pixels x `factor` - `offset`, or
    the bytes themselves where it `takes` uint8. `batch` is null where the file leaves it free. What it `gives` becomes
    probabilities by the `activation`; a single number per image is that of the second of two classes.
    """

    input: str
    output: str
    layout: Literal["nhwc", "nchw"]
    takes: Literal["uint8", "float32"]
    size: int
    channels: int
    batch: int | None
    outputs: int
    scale: float = 1 / 255
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    gives: Literal["logits", "probabilities"] = "logits"
    activation: Literal["softmax", "sigmoid"] = "softmax"

    @property
    def factor(self) -> tuple[float, ...]:
        """What pixels are multiplied with, one per channel."""
        return tuple(self.scale / std for std in self._per_channel(self.std))

    @property
    def offset(self) -> tuple[float, ...]:
        """What is subtracted from that, one per channel."""
        return tuple(
            mean / std for mean, std in zip(self._per_channel(self.mean), self._per_channel(self.std), strict=True)
        )

    def _per_channel(self, values: tuple[float, ...]) -> tuple[float, ...]:
        return values if len(values) == self.channels else values * self.channels

    @property
    def classes(self) -> int:
        """The number of classes."""
        return max(2, self.outputs)


class Adopted(Noun, frozen=True, kw_only=True):
    """Where a model that was made elsewhere is from: its file with its SHA-256, and what it takes and gives.

    `reference` are the images on which the scores of the file itself are the reference of the certificates.
    """

    source: str
    digest: str
    contract: Contract
    reference: Literal["given", "drawn"]


class Certificate(Noun, frozen=True, kw_only=True):
    """Proof that an artifact computes its checkpoint's function on the whole test split.

    `max_abs` is the largest |difference of probabilities|, `max_log_abs` that of log(max(p, 1e-6));
    `decisions_changed` counts the changed ones where the reference's two best classes are more than `tie_margin` apart,
    `near_ties` the images where they are not. With several labels per image a decision is the side of 0.5 on which the
    probability p of a label lies, and p and 1 - p take the place of the two best classes; both counts are of labels.
    An error that is not finite is null, and so is an AUC that is undefined. One of reduced precision is `lossy`: it has
    no `limit_abs`, and says by the 95 % interval of `accuracy_change` what the precision costs. `golden_max_abs` is the
    largest |difference| on drawn golden images, null where they are of the test split. `subject` is the SHA-256 of what
    was certified (`medserve.certificate.subject`); without it the certificate cannot be used. `device` is where the
    runtime computed.
    """

    runtime: Name
    device: Device = "cpu"
    images: int
    max_abs: float | None
    max_log_abs: float | None
    decisions_changed: int
    near_ties: int
    accuracy: float | None
    auc: float | None = None
    limit_abs: float | None
    tie_margin: float
    accuracy_change: tuple[float, float] | None = None
    golden_max_abs: float | None = None
    kind: Literal["float32", "lossy"]
    valid: bool
    reason: str | None
    versions: dict[str, str]
    subject: str = ""


class Artifact(Noun, frozen=True, kw_only=True):
    """`artifact.json`: an exported model: `image` uint8 (N, H, W, C) in, `probabilities` float32 (N, classes) out.

    `compiled_for` is the machine that a compiled model is bound to (`medserve.machine.target`), null for one that runs
    anywhere. `transplanted` names the framework into whose network the weights were put, null for the one that trained
    them. `adopted` says where a model is from that was made elsewhere. `certificate` is that of the format's own
    runtime, `further` those of others that read it. `operators` counts the nodes of an ONNX graph by type;
    `model_bytes` is the size of the version folder on disk. `golden` says whether the images of `golden.npz` are of
    the test split or drawn. `files` maps the relative path of every other file of the folder to its SHA-256.
    """

    schema: int = SCHEMA
    name: Name
    transplanted: str | None = None
    adopted: Adopted | None = None
    format: Name
    precision: Precision = "float32"
    opset: int | None
    compiled_for: str | None = None
    checkpoint: Checkpoint
    certificate: Certificate
    further: tuple[Certificate, ...] = ()
    operators: dict[str, int] = field(default_factory=dict)
    model_bytes: int = 0
    golden: Golden = "test"
    versions: dict[str, str]
    files: dict[str, str]

    @property
    def certificates(self) -> tuple[Certificate, ...]:
        """All of them, that of the format's own runtime first."""
        return (self.certificate, *self.further)

    @property
    def has_model(self) -> bool:
        """Whether a model file belongs to it: none does where only the null runtime is certified."""
        return any(proof.runtime != "null" for proof in self.certificates)

    def certificate_of(self, runtime: str) -> Certificate | None:
        """The certificate for a runtime, null where there is none."""
        return next((proof for proof in self.certificates if proof.runtime == runtime), None)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of one input image."""
        return (self.checkpoint.size, self.checkpoint.size, self.checkpoint.channels)
