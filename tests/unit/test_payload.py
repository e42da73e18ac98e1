"""What is sent: the test images, each once in a seeded order, from files that are what they should be."""

from pathlib import Path

import numpy as np
import pytest
from stub_server import SHAPE

from loadtest.generator import payload
from loadtest.generator.payload import Load
from medserve.errors import BadInput
from medserve.spec import LoadProfile


def test_payload_is_a_seeded_permutation_in_whole_batches() -> None:
    images = np.zeros((10, *SHAPE), np.uint8)
    chosen = payload.batches(images, 3, seed=5)
    assert chosen.shape == (3, 3)
    assert len(set(chosen.ravel())) == 9
    assert np.array_equal(chosen, payload.batches(images, 3, seed=5))
    assert not np.array_equal(chosen, payload.batches(images, 3, seed=6))
    assert payload.batches(images, 16, seed=0).shape == (1, 16)


def test_files_of_images_and_scores_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    with pytest.raises(BadInput, match="no such file of images"):
        payload.open_images(path)
    path.write_bytes(b"no array")
    with pytest.raises(BadInput, match="not an .npy file"):
        payload.open_images(path)
    np.save(path, np.zeros((4, 28, 28), np.uint8))
    with pytest.raises(BadInput, match="expected images as uint8"):
        payload.open_images(path)
    np.save(path, np.zeros((4, 8), np.float64))
    with pytest.raises(BadInput, match="expected float32"):
        payload.open_scores(path, 4)


def test_an_audit_sends_each_fresh_image_twice_in_a_row() -> None:
    profile = LoadProfile(name="closed", mode="closed-loop", batch=2, seconds=1.0, warmup_seconds=0.0)
    load = Load(url="http://127.0.0.1:1", model="m", profile=profile, shape=SHAPE)
    audited = payload.audit_requests(load, seed=5)
    assert len(audited) == 2 * payload.AUDIT_PAIRS
    assert audited[::2] == audited[1::2]
    assert len(set(audited)) == payload.AUDIT_PAIRS
    assert not set(audited) & set(payload.requests(load)[1])
    assert audited == payload.audit_requests(load, seed=5)
    assert not set(audited) & set(payload.audit_requests(load, seed=6))
    assert {len(request) for request in audited} == {len(payload.requests(load)[1][0])}
