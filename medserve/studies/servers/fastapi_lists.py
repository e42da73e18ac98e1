"""FastAPI as its tutorial has it: nested lists in JSON, checked by a Pydantic model, and a posted image file."""

import io

import numpy as np
from fastapi import FastAPI, UploadFile
from onnx_model import Model
from PIL import Image
from pydantic import BaseModel


class Asked(BaseModel):
    """Images."""

    instances: list[list[list[list[int]]]]


class Answer(BaseModel):
    """What the model says of each."""

    predictions: list[list[float]]


app = FastAPI()
model = Model()


@app.post("/v1/models/model:predict")
async def predict(asked: Asked) -> Answer:
    """Probabilities of images."""
    return Answer(predictions=model(np.array(asked.instances, np.uint8)).tolist())


@app.post("/predict")
async def posted(file: UploadFile) -> Answer:
    """Probabilities of an image file."""
    image = np.asarray(Image.open(io.BytesIO(await file.read())))
    return Answer(predictions=model(image.reshape(1, *model.shape)).tolist())
