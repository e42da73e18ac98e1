"""Triton with a model in Python, by nvidia-pytriton: the Open Inference Protocol v2 with binary tensors both ways."""

import os

import numpy as np
from onnx_model import Model
from pytriton.decorators import batch
from pytriton.model_config import ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

model = Model()


@batch
def infer(image):
    """Probabilities of images."""
    return {"probabilities": model(image)}


if __name__ == "__main__":
    http, grpc, metrics = (int(os.environ[name]) for name in ("PORT", "SPARE", "ANOTHER"))
    config = TritonConfig(http_address="127.0.0.1", http_port=http, grpc_port=grpc, metrics_port=metrics)
    with Triton(config=config) as triton:
        triton.bind(
            model_name="model",
            infer_func=infer,
            inputs=[Tensor(name="image", dtype=np.uint8, shape=tuple(model.shape))],
            outputs=[Tensor(name="probabilities", dtype=np.float32, shape=(-1,))],
            config=ModelConfig(max_batch_size=64),
        )
        triton.serve()
