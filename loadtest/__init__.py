"""Load tests: a generator records every request raw; results, statistics and the report are functions of the records.

From the bottom layer up: `samples` is the format of a record, `analysis` the statistics of arrays; `generator` sends
and records, `results` reduces records to rows; `measure` makes one launch; `selftest` tests the generator, `report`
writes a run's page; `commands` implements the command line.
"""
