"""Glossary: the terms and columns of the report."""

from medserve.numbers import ABSENT

MEANING = (
    ("p50, p90, p99", "The latency that 50, 90 or 99 % of the requests did not exceed. A failure counts as infinite."),
    (
        "[low, high]",
        "95 % interval by Student's t over the logarithms of the launches' percentiles. Launches are the unit, because "
        "requests of one process are not independent.",
    ),
    (
        "Faster, slower, equivalent, undecided",
        "Verdicts on ratios of launches that are paired block by block, so that drift cancels. They hold with 95 % "
        "confidence for all pairs under one way of measuring together (Holm). Equivalent: within 5 %. Undecided: more "
        "launches would tell.",
    ),
    (
        ABSENT,
        "Not estimable, or not measured; the note gives the reason. A p99 needs at least 368 requests in each launch.",
    ),
    ("In process", "The same runtime called directly, without HTTP: host to device, run, device to host."),
    (
        "Closed loop",
        "A user sends the next request when the last one was answered. Latency from sending to the last byte.",
    ),
    (
        "Open loop",
        "Requests are sent by a schedule, whether earlier ones were answered or not. Latency counts from the intended "
        "start, so that no waiting is left out.",
    ),
    (
        "Uncorrected",
        "What one back-to-back user would have measured in the same run: it leaves out the requests that it delays, "
        "and so their waiting (coordinated omission).",
    ),
    (
        "Steady state",
        "The last stretch of requests of one median, found by change points, if it covers half of them. Requests "
        "before it are warm-up: kept in the record, marked, and in no figure.",
    ),
    (
        "Not valid",
        "The client, not the server, was slow; the server caches; the rate is too near to what the generator can send; "
        "or the load-generator self-test failed. The row gives the reason.",
    ),
    ("Null", "A runtime that computes nothing, behind the same wrapper: the floor of every latency over HTTP."),
    ("Native", "The framework's own format in its own runtime; beside it the same network as ONNX in ONNX Runtime."),
    ("Parity error", "The largest difference of a probability to the trainer's scores, on the whole test split."),
    ("Images/s", "Answered images over the measured time. In training: the median over steps, without compile time."),
    (
        "Near ties",
        "Test images whose two best classes are so close that rounding decides; they do not count as changed.",
    ),
    ("Compile", "The time of the first training step less that of the median step."),
)
