"""What a request and its answer look like: one file each, for servers of other protocols than this program's.

A plug-in has `encode(images) -> (headers, body)` for uint8 (N, H, W, C) images and `decode(body, head_length)`, which
gives the scores of an answer, float32 (N, classes), and raises BadInput for one that it cannot read; `head_length` is
its Inference-Header-Content-Length, null without one. PATH, with {model} for the model's name, is where requests go
unless the study says otherwise. Both run before and after the load, never during it.
"""
