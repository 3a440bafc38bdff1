"""Malformed messages, images and connections for a real server, and what it must make of each.

Everything follows from a seed: input number n of seed s is the same on every machine.
"""

import asyncio
import io
import re
import socket
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import NamedTuple

import grpc
import numpy as np
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2
from PIL import Image
from serving_site import jpeg

from irv2.errors import ImageReason
from irv2.inference import open_inference_pb2 as oip
from irv2.v1 import classifier_pb2

CLASSIFY, STREAM = "/irv2.v1.Classifier/Classify", "/irv2.v1.Classifier/ClassifyStream"
INFER = "/inference.GRPCInferenceService/ModelInfer"
# Methods that read at most a name and a version.
OTHERS = (
    "/irv2.v1.Classifier/GetModel",
    *(
        f"/inference.GRPCInferenceService/{name}"
        for name in (
            "ServerLive",
            "ServerReady",
            "ServerMetadata",
            "ModelReady",
            "ModelMetadata",
            "ModelConfig",
            "ModelStatistics",
            "RepositoryIndex",
        )
    ),
)
IMAGE_REASONS = set(ImageReason) - {ImageReason.INTERNAL, ImageReason.UNREADABLE}
STREAM_CODES = {
    status.value[0]
    for status in (
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    )
}
NUM_AT_A_TIME = 16
MAX_IMAGES = 64  # of a request, irv2-serve's default
TIMEOUT_S = 60.0
HTTP_STATUSES = {
    HTTPStatus.OK,
    HTTPStatus.BAD_REQUEST,
    HTTPStatus.NOT_FOUND,
    HTTPStatus.METHOD_NOT_ALLOWED,
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
}
# A mutation swaps in what parsers fall for: lengths, signs, markers.
EVIL = (
    b"\x00",
    b"\xff",
    b"\x7f",
    b"\x80",
    b"\xff\xff\xff\xff",
    b"\x00\x00\x00\x00",
    b"\xff\xd8",
    b"\xff\xda",
    b"\xff\xd9",
    b"IHDR",
    b"IDAT",
    b"\x7f\xff\xff\xff",
    b"VP8X",
)


@dataclass(slots=True)
class Report:
    """What became of the inputs: `wrong` names those that got another code than they must."""

    outcomes: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    @property
    def num_inputs(self) -> int:
        return self.outcomes.total()


def seeds() -> list[bytes]:
    """Whole images in every format that is decoded, of several modes."""
    pixels = np.random.default_rng(0).integers(0, 256, (9, 12, 4), np.uint8)
    rgba = Image.fromarray(pixels.repeat(8, 0).repeat(8, 1), "RGBA")
    options = [
        ("RGB", "JPEG", {}),
        ("L", "JPEG", {"progressive": True}),
        ("CMYK", "JPEG", {}),
        ("RGB", "PNG", {}),
        ("RGBA", "PNG", {}),
        ("P", "PNG", {}),
        ("I;16", "PNG", {}),
        ("RGB", "WEBP", {}),
        ("RGBA", "WEBP", {"lossless": True}),
        ("P", "GIF", {}),
        ("RGB", "BMP", {}),
        ("1", "BMP", {}),
        ("RGB", "PPM", {}),
        ("RGB", "TIFF", {}),
        ("RGB", "TIFF", {"compression": "tiff_lzw"}),
        ("RGB", "TIFF", {"compression": "jpeg"}),
    ]
    files = []
    for mode, kind, extra in options:
        file = io.BytesIO()
        image = rgba.convert("L").convert("I").convert(mode) if mode == "I;16" else None
        (image or rgba.convert(mode)).save(file, kind, **extra)
        files.append(file.getvalue())
    return [*files, empty_segments(50_000), plain_ppm(60)]


def empty_segments(num_bytes: int) -> bytes:
    """A JPEG of nothing but segments without content, which are quick to write and slow to walk."""
    return b"\xff\xd8" + b"\xff\xe0\x00\x00" * (num_bytes // 4)


def plain_ppm(side: int) -> bytes:
    """A picture whose numbers are written out, as text to be parsed."""
    return b"P3\n%d %d\n255\n" % (side, side) + b"200 30 7\n" * side**2


def crowds(num_bytes: int) -> list[tuple[str, bytes]]:
    """Methods and messages of so many bytes: many images, inputs, outputs, pieces or dimensions."""
    model, tensor = b"\x0a\x04irv2", b"\x2a\x0f\x0a\x06images\x12\x05UINT8"
    shape = oip.ModelInferRequest.InferInputTensor(name="images", shape=[1] * num_bytes)
    sized = oip.ModelInferRequest(model_name="irv2", inputs=[shape]).SerializeToString()
    return [
        (CLASSIFY, b"\x0a\x00" * (num_bytes // 2)),
        (INFER, model + b"\x2a\x00" * (num_bytes // 2)),
        (INFER, model + tensor + b"\x32\x08\x0a\x06logits" * (num_bytes // 10)),
        (INFER, model + tensor + b"\x3a\x00" * (num_bytes // 2)),
        (INFER, sized),
    ]


def mutate(data: bytes, rng: np.random.Generator) -> bytes:
    """A few bytes flipped, overwritten, cut out or repeated, most often near the beginning."""
    mutated = bytearray(data)
    for _ in range(int(rng.integers(1, 6))):
        size = max(len(mutated), 1)
        at = int(size * rng.random() ** 3)
        match int(rng.integers(5)):
            case 0 if mutated:
                mutated[min(at, size - 1)] ^= 1 << int(rng.integers(8))
            case 1:
                evil = EVIL[int(rng.integers(len(EVIL)))]
                mutated[at : at + len(evil)] = evil
            case 2:
                del mutated[at : at + int(rng.integers(1, 64))]
            case 3:
                piece = mutated[at : at + int(rng.integers(1, 64))]
                mutated[at:at] = piece * int(rng.integers(1, 8))
            case _:
                mutated[int(size * rng.random()) :] = b""
    return bytes(mutated)


class Input(NamedTuple):
    """A call: the method, its messages (several on a stream alone) and its metadata."""

    method: str
    messages: list[bytes]
    metadata: tuple[tuple[str, str | bytes], ...]


class Inputs:
    """Number n of a seed: what is called, and with what."""

    def __init__(self, seed: int, image_size: int) -> None:
        self._seed, self._files = seed, seeds()
        image = classifier_pb2.Image(encoded=jpeg(0))
        pixels = classifier_pb2.Pixels(rgb=bytes(3 * 16 * 16), height=16, width=16)
        request = classifier_pb2.ClassifyRequest(
            images=[image, classifier_pb2.Image(pixels=pixels), image], top_k=3, id="fuzz"
        )
        self._request = request.SerializeToString()
        streamed = classifier_pb2.ClassifyStreamRequest(request=request, timeout_ms=60_000)
        self._streamed = streamed.SerializeToString()
        tensor = oip.ModelInferRequest.InferInputTensor(
            name="images", datatype="UINT8", shape=[1, image_size, image_size, 3]
        )
        self._infer = oip.ModelInferRequest(
            model_name="irv2", inputs=[tensor], raw_input_contents=[bytes(3 * image_size**2)]
        ).SerializeToString()
        tensor.contents.uint_contents.extend([200] * (3 * image_size**2))
        typed = oip.ModelInferRequest(model_name="irv2", inputs=[tensor])
        self._typed = typed.SerializeToString()
        named = oip.ModelMetadataRequest(name="irv2", version="1")
        self._named = named.SerializeToString()
        self._crowds = crowds(100_000)

    def __getitem__(self, number: int) -> Input:
        rng = np.random.default_rng((self._seed, number))
        method, messages = self._call(number, rng)
        return Input(method, messages, _metadata(rng) if number % 3 == 0 else ())

    def _call(self, number: int, rng: np.random.Generator) -> tuple[str, list[bytes]]:
        match number % 8:
            case 0 | 4:
                return CLASSIFY, [mutate(self._request, rng)]
            case 1 if number % 32 == 1:
                method, message = self._crowds[int(rng.integers(len(self._crowds)))]
                return method, [mutate(message, rng)]
            case 1 | 5:
                return INFER, [mutate(self._infer, rng)]
            case 3:
                num_messages = int(rng.integers(1, 4))
                return STREAM, [mutate(self._streamed, rng) for _ in range(num_messages)]
            case 7 if number % 16 == 7:
                return INFER, [mutate(self._typed, rng)]
            case 7:
                return OTHERS[int(rng.integers(len(OTHERS)))], [mutate(self._named, rng)]
            case _:
                file = self._files[int(rng.integers(len(self._files)))]
                image = classifier_pb2.Image(encoded=mutate(file, rng))
                request = classifier_pb2.ClassifyRequest(images=[image])
                return CLASSIFY, [request.SerializeToString()]


def _metadata(rng: np.random.Generator) -> tuple[tuple[str, str | bytes], ...]:
    """Headers that the server reads, damaged."""
    traceparent = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    headers = {"authorization": b"Bearer 0123456789abcdef", "traceparent": traceparent}
    damaged = {key: printable(mutate(value, rng)) for key, value in headers.items()}
    return (*damaged.items(), ("grpc-trace-bin", mutate(traceparent, rng)))


def printable(value: bytes) -> str:
    """What gRPC's clients let through in a header of text: printable bytes stay as they are."""
    return "".join(chr(0x20 + (byte - 0x20) % 0x5F) for byte in value)


async def fuzz(address: str, inputs: Inputs, numbers: range) -> Report:
    """Send the inputs of these numbers and judge every answer."""
    report, waiting = Report(), iter(numbers)

    async def worker(channel: grpc.aio.Channel) -> None:
        calls = {name: channel.unary_unary(name) for name in (CLASSIFY, INFER, *OTHERS)}
        stream = channel.stream_stream(STREAM)
        for number in waiting:
            method, messages, metadata = inputs[number]
            try:
                if method == STREAM:
                    call = stream(iter(messages), timeout=TIMEOUT_S, metadata=metadata)
                    outcome, wrong = _judge_answers(messages, [answer async for answer in call])
                else:
                    reply = await calls[method](*messages, timeout=TIMEOUT_S, metadata=metadata)
                    outcome, wrong = _judge_reply(method, *messages, reply)
            except grpc.aio.AioRpcError as error:
                outcome, wrong = error.code().name, _judge_code(method, messages, error.code())
            report.outcomes[outcome] += 1
            if wrong:
                report.wrong.append(f"input {number}: {wrong}")

    async with grpc.aio.insecure_channel(address) as channel:
        await asyncio.gather(*(worker(channel) for _ in range(NUM_AT_A_TIME)))
    return report


def _judge_answers(messages: list[bytes], answers: list[bytes]) -> tuple[str, str | None]:
    """Of a stream: one answer to each message, which may be a refusal."""
    if len(answers) != len(messages):
        return "OK", f"{len(answers)} answers to {len(messages)} messages"
    for answer in map(classifier_pb2.ClassifyStreamResponse.FromString, answers):
        if answer.error.code not in {0, *STREAM_CODES}:
            return "OK", f"a refusal with code {answer.error.code}"
        if wrong := _wrong_reasons(answer.response.results):
            return "OK", wrong
    return "OK", None


def _judge_reply(method: str, message: bytes, reply: bytes) -> tuple[str, str | None]:
    if method != CLASSIFY:
        return "OK", None
    request = classifier_pb2.ClassifyRequest.FromString(message)
    results = classifier_pb2.ClassifyResponse.FromString(reply).results
    if len(results) != len(request.images):
        return "OK", f"{len(results)} results for {len(request.images)} images"
    return _reason(results[0]) if len(results) == 1 else "OK", _wrong_reasons(results)


def _wrong_reasons(results: Iterable[classifier_pb2.Result]) -> str | None:
    unknown = {_reason(result) for result in results} - {*IMAGE_REASONS, "scores"}
    return f"{unknown}" if unknown else None


def _reason(result: classifier_pb2.Result) -> str:
    if not result.HasField("error"):
        return "scores" if result.scores else "neither scores nor error"
    info = error_details_pb2.ErrorInfo()
    result.error.details[0].Unpack(info)
    return info.reason


def _judge_code(method: str, messages: list[bytes], code: grpc.StatusCode) -> str | None:
    """Why this code is not what the message must get; None where it is."""
    is_valid = method == CLASSIFY and 0 < _num_images(*messages) <= MAX_IMAGES
    if is_valid or method == STREAM:  # a stream goes on after a refusal
        expected = [grpc.StatusCode.OK]
    elif method == CLASSIFY:
        expected = [grpc.StatusCode.INVALID_ARGUMENT]
    else:  # the name of the model may be damaged
        expected = [grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND]
    return None if code in expected else f"{method}: {code.name}, expected {expected}"


def _num_images(message: bytes) -> int:
    try:
        return len(classifier_pb2.ClassifyRequest.FromString(message).images)
    except DecodeError:
        return 0


def fuzz_connections(address: str, seed: int, num_inputs: int) -> None:
    """Bytes that are no HTTP/2, or begin like it, each on a connection of its own."""
    host, _, port = address.rpartition(":")
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04" + bytes(5)
    headers = b"\x00\x00\x10\x01\x04\x00\x00\x00\x01" + bytes(range(16))
    for number in range(num_inputs):
        rng = np.random.default_rng((seed, number))
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            noise = rng.integers(0, 256, int(rng.integers(1, 200)), np.uint8).tobytes()
            whole = (noise, preface + noise, preface + headers + noise)[number % 3]
            try:
                connection.sendall(mutate(whole, rng) if number % 2 else whole)
            except OSError:
                continue  # closed by the server already: as it should


def fuzz_http(address: str, seed: int, num_inputs: int) -> list[str]:
    """Requests to the HTTP port, each on a connection of its own; the wrong answers."""
    host, _, port = address.rpartition(":")
    paths = (b"/metrics", b"/healthz", b"/readyz", b"/../etc/passwd", b"/%00?a=b", b"/v2/models/x")
    heads = [b"GET " + path + b" HTTP/1.1\r\nHost: x\r\n\r\n" for path in paths]
    heads += [_form(), _infer_request()]
    wrong = []
    for number in range(num_inputs):
        rng = np.random.default_rng((seed, number))
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            connection.sendall(mutate(heads[number % len(heads)], rng))
            connection.shutdown(socket.SHUT_WR)
            reply = connection.makefile("rb").read()
        known = [b"HTTP/1.1 %d " % status for status in HTTP_STATUSES]
        if reply and not reply.startswith(tuple(known)):
            wrong.append(f"http input {number}: {reply[:60]!r}")
    return wrong


def _form() -> bytes:
    head = b'Content-Disposition: form-data; name="a"; filename="b"'
    body = b"--x\r\n%b\r\n\r\n%b\r\n--x--\r\n" % (head, jpeg(0))
    return _post(b"/v1/classify?top_k=3", b"multipart/form-data; boundary=x", body)


def _infer_request() -> bytes:
    tensor = b'{"name":"files","datatype":"BYTES","shape":[1],"data":["aGk="]}'
    body = b'{"inputs":[' + tensor + b'],"parameters":{"top_k":3}}'
    return _post(b"/v2/models/irv2-files/infer", b"application/json", body)


def _post(path: bytes, content_type: bytes, body: bytes) -> bytes:
    head = b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Type: %b\r\nContent-Length: %d\r\n\r\n"
    return head % (path, content_type, len(body)) + body


def memory_mb(pid: int) -> float:
    """Resident memory of a process; 0 for one that has ended and was not waited for."""
    resident = re.search(r"VmRSS:\s*(\d+)", Path(f"/proc/{pid}/status").read_text())
    return int(resident[1]) / 1024 if resident else 0


def num_open_files(pid: int) -> int:
    """Of a process, connections included."""
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())


def settled_open_files(pid: int, at_most: int, timeout_s: float = 20.0) -> int:
    """Wait until no more than `at_most` are open, or for `timeout_s`; how many are."""
    until = time.monotonic() + timeout_s
    while (found := num_open_files(pid)) > at_most and time.monotonic() < until:
        time.sleep(0.1)
    return found


def batches(total: int, size: int) -> Iterator[range]:
    """0 to `total` in pieces."""
    for start in range(0, total, size):
        yield range(start, min(start + size, total))
