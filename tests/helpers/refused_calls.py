"""Calls that a server refuses, or that are given up, of every kind and size."""

import asyncio
from collections.abc import Awaitable, Callable
from functools import cache, partial
from typing import NamedTuple

import grpc
from fuzzing import CLASSIFY, INFER, STREAM

from irv2.inference import open_inference_pb2 as oip
from irv2.v1.classifier_pb2 import (
    ClassifyRequest,
    ClassifyStreamRequest,
    ClassifyStreamResponse,
    Image,
)

MB = 1_000_000
LARGEST = 60 * MB  # of a message; irv2-serve takes 64 MiB
TIMEOUT_S = 60.0
MODEL = b"\x0a\x04irv2"
OPTIONS = [("grpc.max_send_message_length", -1)]
CODES = {code.value[0]: code.name for code in grpc.StatusCode}

Message = Callable[[int], bytes]  # of about so many bytes


class Caller(NamedTuple):
    """A client and where it is connected."""

    channel: grpc.aio.Channel
    address: str


# One call with a message of about so many bytes; returns how it, or each answer of it, ended.
Kind = Callable[[Caller, int], Awaitable[set[str]]]


def field(number: int, content: bytes) -> bytes:
    """A field of bytes as it is sent."""
    size, length = len(content), b""
    while size > 0x7F:
        length += bytes([size & 0x7F | 0x80])
        size >>= 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + content


@cache
def files(num_bytes: int, num_images: int = 60, request_id: str = "") -> ClassifyRequest:
    """Files that are no images."""
    image = Image(encoded=bytes(num_bytes // num_images))
    return ClassifyRequest(images=[image] * num_images, id=request_id)


@cache
def classify(num_bytes: int, num_images: int = 60) -> bytes:
    return files(num_bytes, num_images).SerializeToString()


@cache
def streamed(num_bytes: int, num_images: int = 60, request_id: str = "a") -> bytes:
    request = files(num_bytes, num_images, request_id)
    return ClassifyStreamRequest(request=request).SerializeToString()


@cache
def tensor(num_bytes: int) -> bytes:
    """A batch whose bytes are not as many as its shape says."""
    described = oip.ModelInferRequest.InferInputTensor(
        name="images", datatype="UINT8", shape=[2, 75, 75, 3]
    )
    return oip.ModelInferRequest(
        model_name="irv2", inputs=[described], raw_input_contents=[bytes(num_bytes)]
    ).SerializeToString()


def empty_images(num_bytes: int) -> bytes:
    return b"\x0a\x00" * (num_bytes // 2)


def empty_inputs(num_bytes: int) -> bytes:
    return MODEL + b"\x2a\x00" * (num_bytes // 2)


def dimensions(num_bytes: int) -> bytes:
    return MODEL + field(5, field(3, b"\x01" * num_bytes))


def pixels(num_bytes: int) -> bytes:
    return MODEL + field(5, field(5, field(4, b"\x01" * num_bytes)))


def no_message(num_bytes: int) -> bytes:
    return b"\xff" * num_bytes


async def code_of(call: Awaitable[object]) -> set[str]:
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return {error.code().name}
    except asyncio.CancelledError:
        return {"CANCELLED"}
    return {"OK"}


def unary(method: str, message: Message, **options) -> Kind:
    async def ask(caller: Caller, num_bytes: int) -> set[str]:
        options.setdefault("timeout", TIMEOUT_S)
        return await code_of(caller.channel.unary_unary(method)(message(num_bytes), **options))

    return ask


def stream(*messages: Message) -> Kind:
    async def ask(caller: Caller, num_bytes: int) -> set[str]:
        sent = (message(num_bytes) for message in messages)
        answers = caller.channel.stream_stream(STREAM)(sent, timeout=TIMEOUT_S)
        return {CODES[ClassifyStreamResponse.FromString(each).error.code] async for each in answers}

    return ask


async def give_up(caller: Caller, num_bytes: int) -> set[str]:
    call = caller.channel.unary_unary(CLASSIFY)(classify(num_bytes))
    await asyncio.sleep(0.02)
    call.cancel()
    return await code_of(call)


async def give_up_stream(caller: Caller, num_bytes: int) -> set[str]:
    call = caller.channel.stream_stream(STREAM)()
    for number in range(3):
        await call.write(streamed(num_bytes // 3, 60, str(number)))
    call.cancel()
    return {"CANCELLED"}


async def send_half(caller: Caller, num_bytes: int) -> set[str]:
    """Close the connection in the middle of a message."""
    own = [("grpc.use_local_subchannel_pool", 1), *OPTIONS]
    async with grpc.aio.insecure_channel(caller.address, own) as channel:
        await channel.channel_ready()
        call = channel.unary_unary(CLASSIFY)(classify(num_bytes))
        await asyncio.sleep(0.01)
    return await code_of(call)


gzip = grpc.Compression.Gzip
GIVEN_UP = {"CANCELLED", "OK"}  # it may have been answered before
EXPIRED = {"DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "OK"}  # or refused, as it would be late
KINDS: dict[str, tuple[Kind, set[str]]] = {
    "an image too many": (unary(CLASSIFY, partial(classify, num_images=65)), {"INVALID_ARGUMENT"}),
    "files that are no images": (unary(CLASSIFY, classify), {"OK"}),
    "empty images, compressed": (
        unary(CLASSIFY, empty_images, compression=gzip),
        {"INVALID_ARGUMENT"},
    ),
    "no message": (unary(CLASSIFY, no_message), {"INVALID_ARGUMENT"}),
    "a message over the limit": (
        unary(CLASSIFY, lambda num_bytes: bytes(num_bytes + 2**26)),
        {"RESOURCE_EXHAUSTED"},
    ),
    "given up": (give_up, GIVEN_UP),
    "half sent": (send_half, GIVEN_UP),
    "expired": (unary(CLASSIFY, classify, timeout=0.02), EXPIRED),
    "a tensor of another size": (unary(INFER, tensor), {"INVALID_ARGUMENT"}),
    "empty inputs, compressed": (
        unary(INFER, empty_inputs, compression=gzip),
        {"INVALID_ARGUMENT"},
    ),
    "dimensions, compressed": (unary(INFER, dimensions, compression=gzip), {"INVALID_ARGUMENT"}),
    "typed pixels, compressed": (unary(INFER, pixels, compression=gzip), {"INVALID_ARGUMENT"}),
    "a method that ignores its message": (
        unary("/irv2.v1.Classifier/GetModel", lambda num_bytes: field(9, bytes(num_bytes))),
        {"OK"},
    ),
    "no message, to health": (unary("/grpc.health.v1.Health/Check", no_message), {"OK"}),
    "a method that does not exist": (unary("/irv2.v1.Classifier/No", bytes), {"UNIMPLEMENTED"}),
    "streamed: an image too many": (
        stream(partial(streamed, num_images=65)),
        {"INVALID_ARGUMENT"},
    ),
    "streamed: no id, no message": (
        stream(partial(streamed, request_id=""), no_message),
        {"INVALID_ARGUMENT"},
    ),
    "streamed: files that are no images": (stream(streamed), {"OK"}),
    "streamed: given up": (give_up_stream, {"CANCELLED"}),
}
