"""`python count_job.py FRAMEWORK NAME...`: parameters and multiply-adds of rows of the table, 1000 classes, as JSON."""

import importlib
import json
import sys

from medserve.tables import ARCHITECTURES

if __name__ == "__main__":
    own = importlib.import_module(f"own_{sys.argv[1]}")
    print(json.dumps({name: own.count(ARCHITECTURES[name], 1000) for name in sys.argv[2:]}))
