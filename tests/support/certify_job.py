"""`python certify_job.py FORMAT FOLDER...`: certificates of models, by its format's runtime, as a line of JSON each.

FOLDER is `.../NAME-SIZE-FORMAT`; its trainer's scores and its images lie beside it.
"""

import sys
from pathlib import Path

import msgspec
import numpy as np

from export.verify import scores_of
from medserve.certificate import compare
from medserve.tables import FORMATS


def main(form: str, folders: list[Path]) -> None:
    for folder in folders:
        name, size, _ = folder.name.split("-")
        reference = np.load(folder.with_name(f"{name}-{size}-scores.npy"))
        images = np.load(folder.with_name(f"images-{size}.npy"))
        scores = scores_of(folder, form, reference.shape[1], images)
        labels = reference.argmax(1)
        certificate = compare(scores, reference, labels, runtime=FORMATS[form].runtime, versions={})
        print(msgspec.json.encode(certificate).decode(), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], [Path(word) for word in sys.argv[2:]])
