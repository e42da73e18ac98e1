"""The terms of reports and `--help` texts: a definition of each in a sentence, with its unit and source."""

from collections.abc import Mapping

GLOSSARY: Mapping[str, str] = {
    # What is measured.
    "Study": "A set of measurements, described by a TOML file.",
    "Deployment": "An artifact in a runtime, with its device, threads, batch sizes and dispatch.",
    "Cell": "A deployment measured under one load profile, which is a row of the result table.",
    "Launch": "A fresh process that runs a deployment, under all its load profiles in turn.",
    "Block": "One launch of every deployment, in random order; comparisons pair the launches of a block.",
    "Native": "The export format and runtime of the framework that defines the network, as opposed to ONNX.",
    "Null runtime": "A runtime that computes nothing, and so shows the latency of the server and the client alone.",
    # How it is measured.
    "Load generator": "The process that sends requests to the server and records a timestamp for each step in ns.",
    "In process": (
        "A direct call of the runtime, without HTTP, timed from the images in host memory to the scores in host memory."
    ),
    "Closed loop": "A load in which each user sends a request after the response to the previous one.",
    "Open loop": "A load in which requests start at scheduled times, whether or not earlier ones have a response.",
    "Rate asked, delivered": "The requests per second of the schedule, and those that had a correct response.",
    "Throughput": "Images per second in correct responses, over the time of the measurement.",
    "Images/s": "Throughput; in training, images per second of the median training step.",
    "Timing mistake": (
        "A common error of published benchmarks that a study makes on purpose, to show whether it changes a ranking."
    ),
    # Latency.
    "Latency from the intended start": (
        "The time in ms from the scheduled start of a request to the last byte of its response; a failed request "
        "counts as infinite."
    ),
    "Service time": "The time in ms from sending a request to the last byte of its response.",
    "Uncorrected latency": (
        "The latency in ms that a closed loop with one user would have recorded in the same run; it leaves out the "
        "requests that a slow response delays (coordinated omission; Tene, How NOT to Measure Latency, 2013)."
    ),
    "Latency breakdown": (
        "The latency as a sum of parts in ms: waiting in the client, request path, queue, decode, infer, encode, "
        "return path, reading."
    ),
    "Unattributed": "The part of the latency, in ms, that no part of the breakdown explains.",
    "p50, p90, p99": (
        "The latency in ms that 50, 90 or 99 % of the requests do not exceed; a p99 needs at least 368 requests per "
        "launch."
    ),
    "Percentile interval": (
        "The 95 % confidence interval of a percentile, [low, high], by Student's t over the logarithms of the "
        "launches' percentiles, because the requests of a launch are not independent."
    ),
    "Bimodal": (
        "Two separate populations of latency, each at least 10 % of the requests, so that few requests are near the "
        "median."
    ),
    "Warm-up": "The requests before the steady state; they are recorded and marked, but not part of any statistic.",
    "Steady": (
        "Apart from short stalls, the median latency stays within 5 % for at least half of the measurement, up to its "
        "end; change points find the start (Barrett et al., 2017)."
    ),
    # Limits of load.
    "Saturation point": (
        "The number of users with the highest ratio of throughput to median latency (Kleinrock, 1979); more users add "
        "more waiting than throughput."
    ),
    "SLO search": (
        "The search for the highest rate, in requests per second, at which a percentile of the latency from the "
        "intended start stays below a limit (service-level objective) with 95 % confidence."
    ),
    "Resolution scaling": (
        "How latency grows with image size: a fixed part in ms, a cost in ns per pixel, and the exponent of "
        "latency ~ pixels^exponent."
    ),
    # How a server predicts.
    "Dispatch": (
        "Where the server predicts: inline in the event loop, in an inference thread behind a queue, or concurrently."
    ),
    "Queue bound": "The number of requests that may wait for the inference thread; further ones get status 503.",
    "Deadline": "The time in ms within which a request must have its response; otherwise it gets status 503 or 504.",
    # Proofs.
    "Load-generator self-test": (
        "A run against servers with known delays and a known stall, which the records of the load generator must show."
    ),
    "Certificate": (
        "The comparison of an artifact's scores with the trainer's on the whole test split; it is valid if "
        "probabilities differ by at most 1e-4 and only near ties decide for another class."
    ),
    "Lossy": (
        "A certificate of reduced precision (int8, bfloat16): valid if the lower 95 % bound of the accuracy change is "
        "above -1 percentage point, and never ranked among float32 rows."
    ),
    "Golden images": "Up to 32 test images with the trainer's scores, which a runtime must reproduce when it starts.",
    "Near tie": (
        "A test image whose two highest probabilities differ by at most 2e-4, so that rounding may decide between them."
    ),
    "Parity error": "The largest |difference of probabilities| to the trainer's scores, on the whole test split.",
    # Accuracy and training.
    "Macro AUC": "The unweighted mean over classes of the one-vs-rest area under the ROC curve (Yang et al., 2023).",
    "Balanced accuracy": "The unweighted mean over classes of the share of images that are classified correctly.",
    "Compile": "The seconds by which the first training step exceeds the median step.",
    # Conclusions.
    "Verdict": (
        "The result of comparing two cells by the ratios of their paired launches: faster, slower, equivalent (within "
        "5 %) or undecided; with 95 % confidence, no verdict under a load profile is wrong (Holm, 1979)."
    ),
    "Not valid": (
        "The client, not the server, was slow; or the server caches responses; or the rate is above 70 % of what the "
        "load generator reaches with the null runtime; or its self-test failed."
    ),
    "\N{EN DASH}": "Not measured, or not estimable from this sample; the note of the row gives the reason.",
}
"""Definition by term. Terms have the spelling of the report's columns where these have the term."""
