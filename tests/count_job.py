"""`python count_job.py FRAMEWORK`: parameters and multiply-adds of every row of the table at 1000 classes, as JSON."""

import importlib
import json
import sys

from medserve.tables import ARCHITECTURES

if __name__ == "__main__":
    own = importlib.import_module(f"own_{sys.argv[1]}")
    print(json.dumps({name: own.count(row, 1000) for name, row in ARCHITECTURES.items()}))
