"""Image files: what a person posts is what the model sees, and what is no image is refused in one line."""

import io
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import jsonschema
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from numpy.typing import NDArray
from PIL import Image
from server_process import Server, serving

from medserve import store
from medserve.errors import BadInput
from medserve.models import Artifact, Task
from medserve.spec import Deployment
from serve import images, pages

SHAPE = (28, 28, 3)


def encoded(pixels: NDArray[np.uint8], form: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form, **options)
    return file.getvalue()


@pytest.fixture(scope="module")
def served(onnx: Path) -> Iterator[Server]:
    with serving(onnx) as server:
        yield server


@pytest.mark.parametrize(("form", "options"), [("PNG", {}), ("WEBP", {"lossless": True})])
def test_lossless_files_are_their_pixels(image: NDArray[np.uint8], form: str, options: dict[str, object]) -> None:
    found = images.decode(encoded(image[0], form, **options), SHAPE)
    assert np.array_equal(found.images, image)
    assert found.resized_from is None


def test_a_jpeg_is_nearly_its_pixels() -> None:
    smooth = np.broadcast_to(np.linspace(0, 255, 28).astype(np.uint8)[:, None, None], SHAPE)
    found = images.decode(encoded(np.ascontiguousarray(smooth), "JPEG", quality=95), SHAPE)
    assert np.abs(found.images[0].astype(int) - smooth).max() < 8


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [("L", 100, (100, 100, 100)), ("RGBA", (9, 8, 7, 6), (9, 8, 7))],
)
def test_other_modes_become_three_channels_of_eight_bits(mode: str, colour: object, expected: tuple[int, ...]) -> None:
    file = io.BytesIO()
    Image.new(mode, (28, 28), colour).save(file, "PNG")
    assert (images.decode(file.getvalue(), SHAPE).images == expected).all()


def test_more_than_eight_bits_pass_the_models_window_or_are_refused() -> None:
    file = io.BytesIO()
    Image.new("I;16", (28, 28), 1024).save(file, "PNG")
    assert (images.decode(file.getvalue(), SHAPE, (0.0, 4096.0)).images == 64).all()
    for window in (None, "file"):
        with pytest.raises(BadInput, match="the model states no window for them, so send 8 bits"):
            images.decode(file.getvalue(), SHAPE, window)


def test_another_size_is_resized_and_said() -> None:
    found = images.decode(encoded(np.full((40, 50, 3), 7, np.uint8)), SHAPE)
    assert found.resized_from == (50, 40)
    assert (found.images == 7).all()


@given(st.binary(max_size=300))
def test_other_bytes_are_refused(body: bytes) -> None:
    with pytest.raises(BadInput):
        images.decode(body, SHAPE)


@given(st.data())
def test_a_damaged_file_is_decoded_or_refused(data: st.DataObject) -> None:
    whole = bytearray(encoded(np.arange(28 * 28 * 3, dtype=np.uint8).reshape(SHAPE)))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = images.decode(bytes(whole[: data.draw(st.integers(0, len(whole)))]), SHAPE)
    except BadInput:
        return
    assert found.images.shape == (1, *SHAPE)


def chunk(kind: bytes, content: bytes) -> bytes:
    return len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")


@pytest.mark.parametrize(("width", "height"), [(60_000, 60_000), (2**31 - 1, 1), (2**22 + 1, 1), (2049, 2048)])
def test_absurd_dimensions_are_refused_before_they_are_decoded(width: int, height: int) -> None:
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
    body = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100)))
    with pytest.raises(BadInput, match="expected at most 4,194,304 pixels|decompression bomb"):
        images.decode(body, SHAPE)


def progressive(side: int, scans: int) -> bytes:
    """A progressive JPEG of one colour, whose last scan is repeated until there are so many."""
    body = encoded(np.full((side, side, 3), 9, np.uint8), "JPEG", progressive=True)
    last = body.rindex(b"\xff\xda")
    # Ten scans, of which the last is one of refinement that may be repeated; the end of image follows it.
    return body[:last] + body[last:-2] * (scans - body.count(b"\xff\xda") + 1) + body[-2:]


@pytest.mark.parametrize(("side", "scans"), [(8, 65), (2048, 8000), (2048, 17)])
def test_a_jpeg_of_many_scans_is_refused_before_it_is_decoded(side: int, scans: int) -> None:
    body = progressive(side, scans)
    with pytest.raises(BadInput, match=f"the JPEG has {scans} scans"):
        images.decode(body, SHAPE)


@pytest.mark.parametrize(("side", "scans"), [(8, 64), (64, 10), (1024, 10)])
def test_a_usual_progressive_jpeg_is_decoded(side: int, scans: int) -> None:
    assert images.decode(progressive(side, scans), SHAPE).images == pytest.approx(9, abs=2)


def with_parts(form: str, parts: int) -> bytes:
    """A small image file with so many parts more that mean nothing."""
    body = encoded(np.zeros(SHAPE, np.uint8), form)
    if form == "PNG":
        return body[:33] + chunk(b"teSt", b"") * parts + body[33:]
    if form == "WEBP":
        more = body[12:] + b"teSt\0\0\0\0" * parts
        return b"RIFF" + (4 + len(more)).to_bytes(4, "little") + b"WEBP" + more
    return body[:2] + b"\xff\xe5\0\2" * parts + body[2:]


@pytest.mark.parametrize("form", ["PNG", "WEBP", "JPEG"])
def test_a_file_of_many_parts_is_refused_before_it_is_opened(form: str) -> None:
    assert images.decode(with_parts(form, 1000), SHAPE).images.shape == (1, *SHAPE)
    with pytest.raises(BadInput, match="more than 8192 chunks or segments"):
        images.decode(with_parts(form, images.PARTS), SHAPE)


@pytest.mark.parametrize("stray", [b"\xff" * 100_000, b"\0" * 100_000, b"\xff\xc8\xff\xff" + bytes(100_000)])
def test_a_jpeg_with_stray_bytes_is_refused_before_it_is_opened(stray: bytes) -> None:
    body = encoded(np.zeros(SHAPE, np.uint8), "JPEG")
    with pytest.raises(BadInput, match="more than 8192 chunks or segments"):
        images.decode(body[:2] + stray + body[2:], SHAPE)


def test_compressed_text_of_a_png_is_bounded() -> None:
    body = encoded(np.zeros(SHAPE, np.uint8))
    text = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(1 << 20)))
    with pytest.raises(BadInput, match="cannot be decoded"):
        images.decode(body[:33] + text * 5 + body[33:], SHAPE)


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br"])
def test_a_compressed_image_file_is_refused(served: Server, image: NDArray[np.uint8], encoding: str) -> None:
    path = f"/v2/models/{served.model}/classify"
    refused = served.ask("POST", path, encoded(image[0]), {"Content-Encoding": encoding})
    assert refused.status == 415
    assert refused.error == f"Content-Encoding is '{encoding}'; expected none: image files are compressed"
    assert served.ask("POST", path, encoded(image[0]), {"Content-Encoding": "identity"}).status == 200


def test_a_posted_file_is_ranked(served: Server, onnx: Path) -> None:
    with np.load(onnx / "golden.npz") as golden:
        pixels, expected = golden["images"][0], golden["scores"][0]
    answer = served.ask("POST", f"/v2/models/{served.model}/classify", encoded(pixels))
    assert answer.status == 200, answer.body
    ranked = answer.json["classes"]
    classes = store.read_artifact(onnx).checkpoint.classes
    order = np.argsort(-expected, kind="stable")
    assert [one["name"] for one in ranked] == [classes[index] for index in order]
    assert [one["probability"] for one in ranked] == pytest.approx(expected[order], abs=1e-4)
    assert "decode;dur=" in answer.headers["server-timing"]
    assert answer.json["resized_from"] is None


@pytest.mark.parametrize("task", get_args(Task))
def test_an_answer_names_what_the_task_decides_as_the_document_says(empty: Path, task: Task) -> None:
    artifact = store.read_json(empty / store.ARTIFACT, Artifact)
    checkpoint = replace(artifact.checkpoint, task=task, classes=("a", "b", "c"))
    artifact, deployment = replace(artifact, checkpoint=checkpoint), Deployment(artifact="empty", runtime="null")
    scores = np.array([[0.25, 0.75, 0.5]], np.float32)
    file = images.File(np.zeros((1, *SHAPE), np.uint8), None)
    answer = json.loads(images.encode("empty", "1", checkpoint.classes, task, scores, file)[1])
    document = json.loads(pages.pages(artifact, deployment)["/openapi.json"])
    told = document["paths"]["/v2/models/empty/classify"]["post"]["responses"]["200"]
    jsonschema.validate(answer, told["content"]["application/json"]["schema"])
    ranked = [("b", 0.75), ("c", 0.5), ("a", 0.25)]
    if task == "multi-label":
        assert "none excludes another" in told["description"]
        found = [(one["name"], one["probability"], one["applies"]) for one in answer["labels"]]
        assert found == [(*one, applies) for one, applies in zip(ranked, (True, False, False), strict=True)]
        assert "classes" not in answer
    else:
        assert [(one["name"], one["probability"]) for one in answer["classes"]] == ranked
        assert "labels" not in answer


@pytest.mark.parametrize("body", [b"", b"no image", b"\x89PNG\r\n\x1a\n" + b"\0" * 40])
def test_what_is_no_image_is_a_400_and_the_next_is_served(
    served: Server, image: NDArray[np.uint8], body: bytes
) -> None:
    path = f"/v2/models/{served.model}/classify"
    refused = served.ask("POST", path, body)
    assert refused.status == 400
    assert "image" in refused.error
    assert served.ask("POST", path, encoded(image[0])).status == 200
    assert served.ask("GET", path).status == 405
