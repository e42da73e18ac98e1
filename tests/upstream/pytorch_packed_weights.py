"""PyTorch on a CPU: weights that oneDNN packed for two threads cost a hundred times as much with one.

    python pytorch_packed_weights.py

A 1x1 convolution as Inductor writes it with frozen weights. oneDNN chooses the layout of the weights by the number of
threads; with another number it rearranges them in every call, by its reference code where the layout has padding.
`ONEDNN_VERBOSE=1` shows `reorder,simple:any`. Weights that are not packed, as in Inductor's code for a free batch, are
rearranged in every call too, by fast code.
"""

import json
import time

import torch

INPUTS, OUTPUTS, REPEATS = 2048, 512, 20


def main() -> None:
    torch.manual_seed(0)
    images = torch.randn(1, INPUTS, 1, 1).contiguous(memory_format=torch.channels_last)
    weight = (torch.randn(OUTPUTS, INPUTS, 1, 1) / INPUTS).contiguous(memory_format=torch.channels_last)
    geometry = ([0, 0], [1, 1], [1, 1], 1)  # padding, stride, dilation, groups
    weights = {"not_packed": weight}
    for threads in (1, 2):
        torch.set_num_threads(threads)
        weights[f"packed_for_{threads}"] = torch.ops.mkldnn._reorder_convolution_weight(weight, *geometry, images.shape)
    torch.set_num_threads(1)
    found: dict[str, object] = {"torch": torch.__version__}
    outputs = []
    with torch.inference_mode():
        for name, packed in weights.items():
            times = []
            for _ in range(REPEATS):
                began = time.perf_counter()
                output = torch.ops.mkldnn._convolution_pointwise(images, packed, None, *geometry, "none", [], "")
                times.append(time.perf_counter() - began)
            found[f"{name}_ms"] = round(sorted(times)[len(times) // 2] * 1e3, 4)
            outputs.append(output)
    found["largest_difference"] = max(float((one - outputs[0]).abs().max()) for one in outputs)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
