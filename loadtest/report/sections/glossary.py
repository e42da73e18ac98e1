"""What the columns and words of the report mean."""

from loadtest.report.wording import ABSENT

MEANING = (
    ("p50, p90, p99", "The latency that 50, 90 or 99 % of the requests did not exceed. A failure counts as infinite."),
    (
        "[low, high]",
        "95 % interval by Student's t over the logarithms of the launches' percentiles. Launches are the unit: "
        "requests of one process are no independent draws.",
    ),
    (
        "Faster, slower, equivalent, undecided",
        "Verdicts on ratios of launches that are paired block by block, so that what drifts cancels. Of all pairs "
        "under one way of measuring none is wrong with 95 % confidence (Holm). Equivalent: within 5 % for certain. "
        "Undecided: more launches would tell.",
    ),
    (ABSENT, "Not estimable, or not measured; the note says why. A p99 needs at least 368 requests in each launch."),
    ("In process", "The same runtime called directly, without HTTP: host to device, run, device to host."),
    ("Closed loop", "A user sends the next request when the last is answered. Latency from sending to the last byte."),
    (
        "Open loop",
        "Requests leave by a schedule, answered or not. Latency counts from the intended time, so that no waiting is "
        "left out.",
    ),
    (
        "As closed loop",
        "What one user back to back would have printed in the same run: requests that were due while it waited for an "
        "answer are left out, and so is what they waited.",
    ),
    (
        "Steady state",
        "The last stretch of requests of one median, found by change points, where it covers half of them. What comes "
        "before it is warm-up: kept in the record, marked, and in no figure.",
    ),
    (
        "Not valid",
        "The client, not the server, made it slow; the server caches; the rate is too near to what the generator can "
        "do; or the ruler failed its self-test. The row says which.",
    ),
    ("Null", "A runtime that computes nothing, behind the same wrapper: the floor of every latency over HTTP."),
    ("Native", "The framework's own format in its own runtime; beside it the same network as ONNX in ONNX Runtime."),
    ("Parity error", "The largest difference of a probability to the trainer's scores, on the whole test split."),
    ("Images/s", "Answered images over the time of measuring. In training: the median over steps, compile time apart."),
    (
        "Near ties",
        "Test images whose two best classes are so close that rounding decides; none counts as changed.",
    ),
    ("Compile", "What the first training step took beyond the median step."),
)
