"""One file per framework: REQUIRES (modules), WRITES (formats, the native one first), `export` and `scores`.

INT8 and BFLOAT16 are those of its formats that can be had in this precision too; for the latter `export` takes a
`precision`, int8 is made from what it wrote.

`export(checkpoint, weights, form, path)` builds the checkpoint's network, puts the canonical `weights` into it and
writes the model file `path` in the format `form`: input `image` uint8 (N, H, W, C) with N free, output
`probabilities` float32 (N, classes). It raises CannotRun with the reason when the framework's exporter cannot.

`scores(checkpoint, weights, images)` runs the same network in the framework itself, nothing exported: uint8
(N, H, W, C) images to float32 (N, classes) probabilities.
"""
