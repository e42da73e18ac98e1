"""FastAPI as its tutorial has it: nested lists in JSON both ways, checked by a Pydantic model."""

import numpy as np
from fastapi import FastAPI
from onnx_model import Model
from pydantic import BaseModel


class Asked(BaseModel):
    """One image."""

    image: list[list[list[int]]]


class Answer(BaseModel):
    """What the model says of it."""

    probabilities: list[float]


app = FastAPI()
model = Model()


@app.post("/predict")
async def predict(asked: Asked) -> Answer:
    """Probabilities of one image."""
    return Answer(probabilities=model(np.array([asked.image], np.uint8))[0].tolist())
