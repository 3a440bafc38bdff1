"""Reading messages without an exception, and none that would become millions of objects.

Each part of a message becomes an object, of 50 bytes or more and in 50 ns or more during which
nothing else runs. A message of 60 MB, far smaller on the wire if it is compressed, may hold 30
million parts. So the parts are counted first, on the wire format (protobuf.dev, Encoding).
"""

from collections.abc import Callable, Iterator
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError, Message

from irv2.errors import InvalidRequest

MAX_PARTS = 10_000  # a request of 64 images has a few hundred
# The one list of numbers that may be long: a batch's pixels, each of one or two bytes.
PIXELS, MAX_BYTES_PER_PIXEL = "uint_contents", 2

_VARINT, _FIXED64, _BYTES, _GROUP, _END_GROUP, _FIXED32 = range(6)  # wire types
_SIZES = {_FIXED64: 8, _GROUP: 0, _END_GROUP: 0, _FIXED32: 4}


def reader(
    read: Callable[[bytes], Any], max_pixels: int = 0
) -> Callable[[bytes], Message | InvalidRequest]:
    """Return a function that reads as `read` does, or returns why a message is not read.

    gRPC would answer an exception with UNKNOWN and its text, and log a traceback for each.
    """
    kind: Descriptor = read(b"").DESCRIPTOR

    def read_or_refuse(message: bytes) -> Message | InvalidRequest:
        try:
            # Each part takes a byte or more.
            too_much = excess(message, kind, max_pixels) if len(message) > MAX_PARTS else None
            found: Message | InvalidRequest = too_much or read(message)
        except DecodeError:
            return InvalidRequest("message", "can't be read", f"a {kind.full_name}")
        return found

    return read_or_refuse


def or_empty(read: Callable[[bytes], Any]) -> Callable[[bytes], Message]:
    """Return a function that reads an empty message where `reader` refuses one."""
    read_or_refuse = reader(read)

    def read_or_empty(message: bytes) -> Message:
        found = read_or_refuse(message)
        return found if isinstance(found, Message) else read(b"")

    return read_or_empty


def excess(message: bytes, kind: Descriptor, max_pixels: int) -> InvalidRequest | None:
    """Return why a message of this kind holds too much, if it does; its values are not looked at.

    A part is a field, or a byte of a list of numbers; pixels are counted apart. Raises DecodeError
    where the message ends within a part.
    """
    num_parts = num_pixel_bytes = 0
    most_pixel_bytes = MAX_BYTES_PER_PIXEL * max_pixels
    try:
        for field, num_packed in _fields(message, kind):
            is_pixels = field is not None and field.name == PIXELS
            num_parts += 1 if is_pixels else 1 + num_packed
            num_pixel_bytes += num_packed if is_pixels else 0
            if num_parts > MAX_PARTS:
                got = f"here the message exceeds {MAX_PARTS} fields and numbers"
                return InvalidRequest(field.name if field else "message", got, "a few an image")
            if num_pixel_bytes > most_pixel_bytes:
                got, expected = f"{num_pixel_bytes} bytes", f"at most {most_pixel_bytes}"
                return InvalidRequest(PIXELS, got, expected)
    except (IndexError, KeyError) as error:
        raise DecodeError("a part ends early or is of no known type") from error
    return None


def _fields(message: bytes, kind: Descriptor) -> Iterator[tuple[FieldDescriptor | None, int]]:
    """Yield each field, None if unknown, and its bytes where they are a list of numbers, else 0.

    Fields of the messages within follow. Raises DecodeError, IndexError or KeyError.
    """
    rest = [(0, len(message), kind)]  # from, to and kind of each message within
    while rest:
        at, end, kind = rest.pop()
        while at < end:
            tag, at = _varint(message, at)
            field, wire_type, num_packed = kind.fields_by_number.get(tag >> 3), tag & 7, 0
            if wire_type == _VARINT:
                _, at = _varint(message, at)
            elif wire_type != _BYTES:
                at += _SIZES[wire_type]
            else:
                size, at = _varint(message, at)
                if field and field.message_type:
                    rest.append((at, at + size, field.message_type))
                elif field and field.type not in _OF_BYTES:
                    num_packed = size
                at += size
            yield field, num_packed
        if at > end:
            raise DecodeError("a part goes beyond the end")


_OF_BYTES = (FieldDescriptor.TYPE_BYTES, FieldDescriptor.TYPE_STRING)


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """The number that begins there, and where it ends. Raises IndexError at the message's end."""
    value = 0
    for shift in range(0, 70, 7):  # 64 bits
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise DecodeError("a number of more than 64 bits")
