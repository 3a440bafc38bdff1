"""What a client makes of one image's trouble, of bad arguments, and of another process."""

import pickle
import threading

import numpy as np
import pytest
from scripted_server import Scripted, served
from unreadable import unreadable_paths

from irv2.client import Client
from irv2.errors import Expired, ImageReason, UsageError
from irv2.v1 import classifier_pb2

IMAGE = np.zeros((4, 5, 3), np.uint8)


class Roomy(Scripted):
    """Takes many images in a request."""

    def GetModel(self, request, context):  # noqa: N802 (gRPC's name)
        limits = classifier_pb2.Limits(max_message_bytes=2**20, max_images=64)
        return classifier_pb2.GetModelResponse(limits=limits)


@pytest.fixture(scope="module")
def client():
    with served(Roomy()) as address, Client(address) as client:
        yield client


@pytest.mark.parametrize("make", [list, iter], ids=["list", "generator"])
def test_images_that_cannot_be_sent_fail_alone(client, tmp_path, make):
    paths = unreadable_paths(tmp_path)
    bad = [*paths, None, 5, b"".join, IMAGE[:, :, 0], IMAGE.astype(float), bytes(2**21)]
    images = [image for each in bad for image in (each, b"good")]
    results = client.classify(make(images))
    assert len(results) == len(images)
    assert all(result.scores for result in results[1::2])
    reasons = [result.error.reason for result in results[::2]]
    assert reasons[: len(paths)] == [ImageReason.UNREADABLE] * len(paths)
    assert reasons[len(paths) :] == [ImageReason.BAD_PIXELS] * 5 + [ImageReason.TOO_LARGE]


def test_a_lone_image_is_one(client, tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(b"good")
    for image in (path, str(path), b"good", IMAGE):
        [result] = client.classify(image)
        assert result.scores
    for image in (tmp_path, "", IMAGE[0], None):
        [result] = client.classify(image)
        assert result.error


@pytest.mark.parametrize("images", [[], (), iter(()), np.zeros((0, 4, 5, 3), np.uint8)])
def test_no_images_are_no_results(client, images):
    assert client.classify(images) == []


@pytest.mark.parametrize("top_k", [0, 1, 2**31, 2**32 - 1, np.int64(3)])
def test_any_number_of_classes_may_be_asked_for(client, top_k):
    assert client.classify([b"good"], top_k)[0].scores


@pytest.mark.parametrize("top_k", [-1, 2**32, 1.5, "5", None])
def test_any_other_top_k_is_wrong_usage_at_once(client, top_k):
    expected = "expected a whole number from 0, which means 5, to 4294967295"
    with pytest.raises(UsageError, match=rf"^top_k: {top_k!r}; {expected}$"):
        client.iter_classify([b"good"], top_k)


def test_a_timeout_that_is_no_number_is_wrong_usage_at_once(client):
    with pytest.raises(UsageError, match=r"^timeout_s: nan; expected seconds$"):
        client.iter_classify([b"good"], timeout_s=float("nan"))


@pytest.mark.parametrize("timeout_s", [0, -1, float("-inf")])
def test_a_time_that_is_over_is_expired(client, timeout_s):
    with pytest.raises(Expired):
        client.classify([b"good"], timeout_s=timeout_s)
    assert client.classify([b"good"], timeout_s=float("inf"))[0].scores


def test_a_camera_is_answered_as_its_pictures_come(client):
    answered = threading.Semaphore()

    def camera():
        for _ in range(5):
            assert answered.acquire(timeout=20)
            yield b"picture"

    for result in client.iter_classify(camera()):
        assert result.scores
        answered.release()


def test_what_a_generator_raises_comes_through(client):
    def camera():
        yield b"picture"
        raise ZeroDivisionError("in the camera")

    results = client.iter_classify(camera())
    assert next(results).scores
    with pytest.raises(ZeroDivisionError, match="in the camera"):
        next(results)


def test_a_client_does_not_travel_to_another_process(client):
    line = f"^{client.name}: a client can't be sent to another process; make a Client in each"
    with pytest.raises(UsageError, match=line):
        pickle.dumps(client)
