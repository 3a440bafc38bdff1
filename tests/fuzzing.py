"""Malformed messages, images and connections for a real server, and what it must make of each.

Everything follows from a seed: input number n of seed s is the same on every machine.
"""

import asyncio
import io
import socket
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import numpy as np
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2
from PIL import Image
from serving_site import jpeg

from irv2.errors import ImageReason
from irv2.inference import open_inference_pb2 as oip
from irv2.v1 import classifier_pb2

CLASSIFY, INFER = "/irv2.v1.Classifier/Classify", "/inference.GRPCInferenceService/ModelInfer"
IMAGE_REASONS = set(ImageReason) - {ImageReason.INTERNAL, ImageReason.UNREADABLE}
NUM_AT_A_TIME = 16
MAX_IMAGES = 64  # of a request, irv2-serve's default
TIMEOUT_S = 60.0
# A mutation swaps in what parsers fall for: lengths, signs, markers.
EVIL = (b"\x00", b"\xff", b"\x7f", b"\x80", b"\xff\xff\xff\xff", b"\x00\x00\x00\x00", b"\xff\xd8",
        b"\xff\xda", b"\xff\xd9", b"IHDR", b"IDAT", b"\x7f\xff\xff\xff", b"VP8X")  # fmt: skip


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
        ("RGB", "JPEG", {}), ("L", "JPEG", {"progressive": True}), ("CMYK", "JPEG", {}),
        ("RGB", "PNG", {}), ("RGBA", "PNG", {}), ("P", "PNG", {}), ("I;16", "PNG", {}),
        ("RGB", "WEBP", {}), ("RGBA", "WEBP", {"lossless": True}), ("P", "GIF", {}),
        ("RGB", "BMP", {}), ("1", "BMP", {}), ("RGB", "PPM", {}), ("RGB", "TIFF", {}),
        ("RGB", "TIFF", {"compression": "tiff_lzw"}), ("RGB", "TIFF", {"compression": "jpeg"}),
    ]  # fmt: skip
    files = []
    for mode, kind, extra in options:
        file = io.BytesIO()
        image = rgba.convert("L").convert("I").convert(mode) if mode == "I;16" else None
        (image or rgba.convert(mode)).save(file, kind, **extra)
        files.append(file.getvalue())
    return files


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


class Inputs:
    """Number n of a seed: the method that is called and the message's bytes."""

    def __init__(self, seed: int, image_size: int) -> None:
        self._seed, self._files = seed, seeds()
        image = classifier_pb2.Image(encoded=jpeg(0))
        pixels = classifier_pb2.Pixels(rgb=bytes(3 * 16 * 16), height=16, width=16)
        self._request = classifier_pb2.ClassifyRequest(
            images=[image, classifier_pb2.Image(pixels=pixels), image], top_k=3, id="fuzz"
        ).SerializeToString()
        tensor = oip.ModelInferRequest.InferInputTensor(
            name="images", datatype="UINT8", shape=[1, image_size, image_size, 3]
        )
        self._infer = oip.ModelInferRequest(
            model_name="irv2", inputs=[tensor], raw_input_contents=[bytes(3 * image_size**2)]
        ).SerializeToString()

    def __getitem__(self, number: int) -> tuple[str, bytes]:
        rng = np.random.default_rng((self._seed, number))
        match number % 4:
            case 0:
                return CLASSIFY, mutate(self._request, rng)
            case 1:
                return INFER, mutate(self._infer, rng)
            case _:
                file = mutate(self._files[int(rng.integers(len(self._files)))], rng)
                image = classifier_pb2.Image(encoded=file)
                return CLASSIFY, classifier_pb2.ClassifyRequest(images=[image]).SerializeToString()


async def fuzz(address: str, inputs: Inputs, numbers: range) -> Report:
    """Send the inputs of these numbers and judge every answer."""
    report, waiting = Report(), iter(numbers)

    async def worker(channel: grpc.aio.Channel) -> None:
        calls = {name: channel.unary_unary(name) for name in (CLASSIFY, INFER)}
        for number in waiting:
            method, message = inputs[number]
            try:
                reply = await calls[method](message, timeout=TIMEOUT_S)
                outcome, wrong = _judge_reply(method, message, reply)
            except grpc.aio.AioRpcError as error:
                outcome, wrong = error.code().name, _judge_code(method, message, error.code())
            report.outcomes[outcome] += 1
            if wrong:
                report.wrong.append(f"input {number}: {wrong}")

    async with grpc.aio.insecure_channel(address) as channel:
        await asyncio.gather(*(worker(channel) for _ in range(NUM_AT_A_TIME)))
    return report


def _judge_reply(method: str, message: bytes, reply: bytes) -> tuple[str, str | None]:
    if method == INFER:
        return "OK", None
    request = classifier_pb2.ClassifyRequest.FromString(message)
    results = classifier_pb2.ClassifyResponse.FromString(reply).results
    if len(results) != len(request.images):
        return "OK", f"{len(results)} results for {len(request.images)} images"
    reasons = [_reason(result) for result in results]
    unknown = [reason for reason in reasons if reason not in {*IMAGE_REASONS, "scores"}]
    return reasons[0] if len(reasons) == 1 else "OK", f"{unknown}" if unknown else None


def _reason(result: classifier_pb2.Result) -> str:
    if not result.HasField("error"):
        return "scores" if result.scores else "neither scores nor error"
    info = error_details_pb2.ErrorInfo()
    result.error.details[0].Unpack(info)
    return info.reason


def _judge_code(method: str, message: bytes, code: grpc.StatusCode) -> str | None:
    """Why this code is not what the message must get; None where it is."""
    if method == CLASSIFY and 0 < _num_images(message) <= MAX_IMAGES:
        expected = grpc.StatusCode.OK
    else:
        expected = grpc.StatusCode.INVALID_ARGUMENT
    return None if code is expected else f"{method}: {code.name}, expected {expected.name}"


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


def memory_mb(pid: int) -> float:
    """Resident memory of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


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
