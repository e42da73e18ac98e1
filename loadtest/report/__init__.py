"""The report of a run: one page (HTML) and one text (Markdown) of the same plain data, made from stored samples.

Nothing here measures. `facts` reads the run; each file of `sections` turns it into tables (`tables`) and figures
(`axes`, `drawing`, `figures`), whose words are in `prose.toml` and `wording`; `page` composes them; `document` says
what a report consists of and writes it, as does `results.tabular`.
"""
