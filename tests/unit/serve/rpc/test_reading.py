"""What is read, and what is refused from its wire format alone."""

import time
import tracemalloc

import pytest
from fuzzing import crowds

from irv2.errors import InvalidRequest
from irv2.inference import open_inference_pb2 as oip
from irv2.serve.rpc.reading import MAX_PARTS, or_empty, reader
from irv2.v1.classifier_pb2 import ClassifyRequest, Image, Pixels

read_classify = reader(ClassifyRequest.FromString)
SLOW_TO_COUNT = 3_000_000  # bytes


def infer(**tensor) -> bytes:
    shaped = oip.ModelInferRequest.InferInputTensor(name="images", datatype="UINT8", **tensor)
    return oip.ModelInferRequest(model_name="irv2", inputs=[shaped]).SerializeToString()


def typed(pixels: list[int]) -> bytes:
    return infer(contents=oip.InferTensorContents(uint_contents=pixels))


def test_a_request_is_read():
    encoded, pixels = Image(encoded=bytes(100_000)), Image(pixels=Pixels(rgb=bytes(3), height=1))
    request = ClassifyRequest(images=[encoded, pixels] * 500, top_k=3, id="a")
    assert read_classify(request.SerializeToString()) == request


def test_parts_are_counted_to_the_limit_and_no_further():
    most = MAX_PARTS - 2  # an image of a long file is a part, and the file another
    message = (
        b"\x0a\x00" * most
        + ClassifyRequest(images=[Image(encoded=bytes(MAX_PARTS))]).SerializeToString()
    )
    assert len(read_classify(message).images) == most + 1
    refusal = read_classify(message + b"\x0a\x00")
    assert isinstance(refusal, InvalidRequest)
    assert "10000 fields" in str(refusal)


@pytest.mark.parametrize(("method", "message"), crowds(SLOW_TO_COUNT))
def test_a_crowd_is_refused_at_once_and_without_memory(method, message):
    kind = ClassifyRequest if method.endswith("Classify") else oip.ModelInferRequest
    read = reader(kind.FromString)
    tracemalloc.start()
    refusal = read(message)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert isinstance(refusal, InvalidRequest)
    assert peak < 5_000_000


@pytest.mark.parametrize(
    "crowd",
    [
        infer(shape=[1] * 20_000),
        infer(contents=oip.InferTensorContents(int_contents=[1] * 20_000)),
        infer(contents=oip.InferTensorContents(bytes_contents=[b""] * 20_000)),
        infer(parameters={str(n): oip.InferParameter(int64_param=n) for n in range(5000)}),
        b"\x2a\x03\x0a\x01a" * 6000,  # inputs with a name each, so the parts lie a level deeper
        b"\x98\x06\x01" * 20_000,  # fields that nobody knows
        b"\x9b\x06\x9c\x06" * 20_000,  # groups
    ],
    ids=["shape", "numbers", "strings", "parameters", "inputs", "unknown", "groups"],
)
def test_parts_are_counted_wherever_they_lie(crowd):
    assert isinstance(reader(oip.ModelInferRequest.FromString)(crowd), InvalidRequest)


def test_pixels_are_counted_apart():
    most = MAX_PARTS
    read = reader(oip.ModelInferRequest.FromString, max_pixels=most)
    largest = typed([200] * most)
    assert read(largest) == oip.ModelInferRequest.FromString(largest)
    refusal = read(typed([200] * (most + 1)))
    assert str(refusal) == "uint_contents: 20002 bytes; expected at most 20000"


@pytest.mark.parametrize(
    "broken",
    [
        b"\xff",
        b"\xff" * 5_000_000,  # one number of many bytes, slow to add up
        b"\x0a\xff\xff\xff\xff\x0f" + bytes(MAX_PARTS),  # beyond the end
        b"\x0a\x00" * MAX_PARTS + b"\x0a",
        b"\x0e" * (MAX_PARTS + 1),  # of no known type
        ClassifyRequest(images=[Image(encoded=bytes(20_000))]).SerializeToString()[:-1],
    ],
    ids=["byte", "number", "beyond", "cut", "type", "file"],
)
def test_a_message_that_cannot_be_read_says_so(broken):
    began = time.monotonic()
    assert isinstance(read_classify(broken), InvalidRequest)
    assert time.monotonic() - began < 2.0  # minutes, if it were added up
    assert or_empty(ClassifyRequest.FromString)(broken) == ClassifyRequest()
