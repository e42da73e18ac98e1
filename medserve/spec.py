"""What is deployed and how it is measured, and the base of all nouns: frozen, typed, exchanged by stages as JSON.

Networks, checkpoints and artifacts stand in `medserve.models`. No noun does anything when it is read.
"""

import math
from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import Meta

from medserve.errors import NAME, BadInput

SCHEMA = 1
"""Version of every manifest but those of `medserve.result`; a reader refuses an older one."""

Device = Literal["cpu", "cuda"]
Mode = Literal["in-process", "closed-loop", "open-loop"]
Dispatch = Literal["inline", "thread", "concurrent"]
Arrivals = Literal["constant", "poisson", "bursts", "trace"]
Settings = Literal["default", "tuned"]
Payload = Literal["binary", "json"]
Precision = Literal["float32", "tf32", "float16", "bfloat16", "int8"]
Mistake = Literal["predict", "unsynchronised", "compile-inside", "one-image", "default-threads", "json"]
Name = Annotated[str, Meta(pattern=NAME)]
Count = Annotated[int, Meta(ge=1)]
Positive = Annotated[float, Meta(gt=0)]
NotNegative = Annotated[float, Meta(ge=0)]
Share = Annotated[float, Meta(ge=0, le=1)]
ShareBelowOne = Annotated[float, Meta(ge=0, lt=1)]
Window = Literal["file"] | Annotated[tuple[float, ...], Meta(min_length=2, max_length=2)]
"""The grey values (low, high) that become 0 and 255; `file`: by the window that each DICOM file states."""


def check_window(window: Window | None) -> None:
    """Raise BadInput for a window without values between its ends."""
    if isinstance(window, tuple) and not -math.inf < window[0] < window[1] < math.inf:
        raise BadInput(f"window {window[0]:g} to {window[1]:g}; expected two finite numbers, the lower one first")


def window_words(window: Window | None) -> list[str]:
    """A window as the option of a command; empty without one."""
    if window is None:
        return []
    return [f"--window={window if isinstance(window, str) else ':'.join(map(repr, window))}"]


class Noun(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all nouns: immutable, keyword-only, strict when decoded; `store.read_json` ignores unknown fields.

    `oldest` is the lowest `schema` that is read, of those that state one.
    """

    oldest: ClassVar[int] = SCHEMA


BODIES, OIP = "loadtest.generator.bodies", "oip"
"""The plug-ins of requests and answers; that of the Open Inference Protocol has tensors in binary and in JSON."""
PLACES = ("port", "spare", "another", "file", "artifact", "model", "threads", "folder", "studies", "source")
"""What stands in braces in a server's command: free ports; the file of the model, its artifact's folder and its name;
threads; an empty folder; the folders of the studies and of the packages that come with this program."""


class Environment(Noun, frozen=True, kw_only=True):
    """Packages of their own, by pip's words, for what cannot or should not share those of this program.

    `constraints` is the path of a constraints file, `python` an interpreter, by default this program's own. `runs`
    names frameworks and runtimes whose jobs run there; `packages` then has what this program itself depends on, too.
    """

    name: Name
    packages: tuple[str, ...] = ()
    constraints: str = ""
    python: str = ""
    runs: tuple[Name, ...] = ()


class Server(Noun, frozen=True, kw_only=True):
    """A server that others wrote, at a `url` or started by a `command`, which serves artifacts of one `format`.

    In command and variables stand the words of PLACES in braces. `model` is the model's name there, `body` the plug-in
    of `loadtest.generator.bodies` for requests and answers, `path` that of a prediction where the body has none.
    `needs` says what must be installed by hand. `runtime` is what it runs the model with. It has as many `cores` as its
    model has threads, where they are null.
    """

    name: Name
    url: str = ""
    command: tuple[str, ...] = ()
    variables: dict[str, str] = {}
    environment: str = ""
    needs: str = ""
    model: str = "model"
    body: str = OIP
    path: str = ""
    format: str = "onnx"
    runtime: str = "onnx_runtime"
    ready_seconds: Positive = 120.0
    cores: Count | None = None


MOST_INSTANCES = 64
"""Each holds the model in memory, and has a thread that competes for the interpreter."""


class Deployment(Noun, frozen=True, kw_only=True):
    """An artifact behind a runtime. `artifact` is a folder name under `artifacts/`; all that varies is said here.

    `batch_sizes` are compiled or run once before the server is ready; other sizes are padded up to the next.
    `queue` bounds the requests that wait for an inference thread (`dispatch = "thread"`), which puts them together up
    to `batch_images` images and waits for more of them no longer than `batch_delay_ms`; one that is not answered within
    `deadline_ms` is refused. A prediction that has not come after `patience_seconds` never comes: the runtime hangs.
    `instances` are how often the model is loaded, each with an inference thread of its own and the runtime's `threads`.
    `dispatch = "concurrent"` is for a runtime whose predictions overlap and that says when each is due. `options` are
    the runtime's own, and it checks them; with tuned `settings` they are those that `medserve tune` found.
    `threads = 0` are as many as there are usable cores. `server` is one that others wrote, null for this program's own;
    its programs are those of the `environment`, null for what is found on the path. Deployments that differ in `copy`
    alone are the same under two names: what differs between their latencies is noise. `precision` is the artifact's,
    which wins: TF32 is a setting of the runtime, whose model is the one in float32.
    """

    artifact: Name
    runtime: Name
    device: Device = "cpu"
    settings: Settings = "default"
    threads: int = 1
    batch_sizes: tuple[int, ...] = (1, 32)
    dispatch: Dispatch = "inline"
    queue: int = 128
    batch_images: int = 1
    instances: int = 1
    batch_delay_ms: float = 1.0
    deadline_ms: float | None = None
    patience_seconds: float = 60.0
    options: dict[str, Any] = {}
    server: Server | None = None
    environment: Environment | None = None
    copy: int = 0
    precision: Precision = "float32"

    @property
    def name(self) -> str:
        """The deployment in one word, as it stands in paths and tables."""
        dispatch = "" if self.dispatch == "inline" else f"-{self.dispatch}"
        dispatch += f"-b{self.batch_images}" if self.batch_images > 1 else ""
        dispatch += f"-i{self.instances}" if self.instances > 1 else ""
        tuned = "-tuned" if self.settings == "tuned" else ""
        by = "" if self.server is None else f"-{self.server.name}"
        by += f"-copy{self.copy}" if self.copy else ""
        return f"{self.artifact}.{self.runtime}.{self.device}-t{self.threads or 'all'}{dispatch}{tuned}{by}"

    @property
    def keeps_memory(self) -> bool:
        """Whether its process keeps freed memory, which is to be said before any thread has a heap of its own."""
        return self.options.get("heap") == "kept"

    @property
    def cores(self) -> int:
        """How many cores its threads fill, 0 for all usable ones."""
        return self.threads * self.instances

    def check(self) -> None:
        """Raise BadInput for a number out of range, or what needs a queue without one."""
        if self.threads < 0:
            raise BadInput(f"threads is {self.threads}; expected at least 1, or 0: as many as usable cores")
        if self.queue < 1:
            raise BadInput(f"queue is {self.queue}; expected at least 1")
        sizes = self.batch_sizes
        if not sizes or sizes[0] < 1 or list(sizes) != sorted(set(sizes)):
            raise BadInput(f"batch_sizes is {list(sizes)}; expected one or more positive numbers in ascending order")
        if not 1 <= self.instances <= MOST_INSTANCES:
            raise BadInput(f"instances is {self.instances}; expected 1 to {MOST_INSTANCES}")
        if self.dispatch != "thread" and (self.batch_images > 1 or self.instances > 1 or self.deadline_ms is not None):
            raise BadInput(
                f"dispatch {self.dispatch} has no queue, which batching, several instances and a deadline need; "
                "choose thread"
            )
        if not 1 <= self.batch_images <= sizes[-1]:
            raise BadInput(
                f"batch_images is {self.batch_images}; expected 1 to {sizes[-1]}, the largest of batch_sizes"
            )
        for name in ("batch_delay_ms", "patience_seconds", "deadline_ms"):
            value = getattr(self, name)
            # A delay of 0 is allowed: no waiting for more images.
            if value is not None and not (0 < value < math.inf or (value == 0 and name == "batch_delay_ms")):
                raise BadInput(f"{name} is {value:g}; expected a positive number")


MOST_SECONDS = 60.0
"""Seconds up to which a measurement is prolonged for more requests."""


class LoadProfile(Noun, frozen=True, kw_only=True):
    """One way of measuring. `rate` in requests per second (open loop only); durations in seconds.

    In place of a rate an open loop may have a `load`, a share of the deployment's capacity: what the same server has
    answered per second just before, under the closed loop named `capacity`. A record of it has its rate too.

    A measurement takes `seconds`, and goes on, up to MOST_SECONDS, where that gives so many `requests`: a p99 with its
    interval needs 368. `burst` is how many requests arrive together (arrivals `bursts`); `trace` a text file of arrival
    times (arrivals `trace`); `gap_seconds` how long each user of a closed loop rests between an answer and its next
    request. `mistake` names the timing mistake that is made on purpose (`medserve.tables.TIMING_MISTAKES`): such a row
    judges claims, and ranks nothing.
    """

    name: Name
    mode: Mode
    batch: int = 1
    users: int = 1
    rate: float | None = None
    load: float | None = None
    capacity: Name | None = None
    arrivals: Arrivals = "constant"
    burst: int = 1
    trace: str | None = None
    gap_seconds: float = 0.0
    mistake: Mistake | None = None
    payload: Payload = "binary"
    seconds: float
    warmup_seconds: float
    requests: int = 0

    @property
    def sends_json(self) -> bool:
        """Whether images and scores travel as JSON numbers."""
        return self.payload == "json" or self.mistake == "json"

    def goes_on(self, count: int, seconds: float) -> bool:
        """Whether measuring goes on with `count` requests after so many seconds, the warm-up not counted."""
        if seconds < self.seconds:
            return True
        return count < self.requests and seconds < MOST_SECONDS and count * MOST_SECONDS >= self.requests * seconds

    @property
    def scheduled_seconds(self) -> float:
        """The length of an open loop's schedule after the warm-up."""
        if not self.requests or not self.rate or self.arrivals == "trace":
            return self.seconds
        # A random number of arrivals is below its mean half of the time; a tenth more is two standard deviations.
        wanted = self.requests / self.rate * (1.0 if self.arrivals == "constant" else 1.1)
        return max(self.seconds, wanted) if wanted <= MOST_SECONDS else self.seconds


class Cell(Noun, frozen=True, kw_only=True):
    """One deployment under one way of measuring: a row of the table."""

    deployment: Deployment
    profile: LoadProfile

    @property
    def name(self) -> str:
        """The folder of the cell's results."""
        return f"{self.deployment.name}.{self.profile.name}"
