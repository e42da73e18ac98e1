"""The report of a run: one page (HTML) and one text (Markdown) of the same plain data, made from stored samples.

Nothing here measures. `facts` reads the run, each file of `sections` turns it into tables and figures (`model`), `page`
composes them, and `page`, `markdown` and `results.tabular` write them.
"""
