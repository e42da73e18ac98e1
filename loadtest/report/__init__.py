"""The report of a run: one page (HTML) and one text (Markdown) of the same plain data, made from stored samples.

Nothing here measures. `facts` reads the run, `answer`, `results`, `validity` and `charts` turn it into the data of
`model`, `page` and `markdown` write that down.
"""
