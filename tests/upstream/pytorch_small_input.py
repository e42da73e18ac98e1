"""PyTorch on a CPU: a small 3x3 convolution of one image takes the slow kernel, of two images the fast one.

    python pytorch_small_input.py

With one thread, an input of one image with at most 20,480 numbers is not given to oneDNN. It is the second convolution
of a small network at 28 px, and `slow_conv2d` in its profile; prepacked weights (`torch.jit.freeze`) avoid it.
"""

import json
import time

import torch

CHANNELS, SIDE, REPEATS = 64, 14, 200


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    images = torch.randn(2, CHANNELS, SIDE, SIDE)
    weight = torch.randn(CHANNELS, CHANNELS, 3, 3) / CHANNELS
    packed = torch.mkldnn_convolution
    forms = {
        "chosen": lambda x: torch.nn.functional.conv2d(x, weight, padding=1),
        "onednn": lambda x: packed(x, weight, None, (1, 1), (1, 1), (1, 1), 1),
    }
    found: dict[str, object] = {"torch": torch.__version__}
    with torch.inference_mode():
        outputs = []
        for name, form in forms.items():
            for count in (1, 2):
                x = images[:count].contiguous()
                outputs.append(form(x)[:1])
                times = []
                for _ in range(REPEATS):
                    began = time.perf_counter()
                    form(x)
                    times.append(time.perf_counter() - began)
                found[f"{name}_{count}_ms"] = round(sorted(times)[len(times) // 2] * 1e3, 4)
        found["largest_difference"] = max(float((one - outputs[0]).abs().max()) for one in outputs)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
