"""`python -m loadtest.benchmark.serving.become PROGRAM...`: become a program of another environment.

The program then ends with its parent, although it does not import medserve.
"""

import os
import sys

from medserve import process

if __name__ == "__main__":
    process.die_with_parent()
    os.execv(sys.argv[1], sys.argv[1:])  # noqa: S606  # the benchmark's own words
