"""Requests and answers of the Open Inference Protocol in JSON, with its binary tensor data.

A request becomes the message that gRPC's clients send, always with raw contents.
"""

import base64
import binascii
import json
from collections.abc import Mapping
from itertools import chain
from typing import Any

from irv2.errors import InvalidRequest
from irv2.inference import open_inference_pb2 as oip
from irv2.serve.rest.request import whole_number
from irv2.serve.rpc.tensor_models import VERSION, Tensor, raw_from_bytes

# Values of JSON become Python's objects, during which nothing else runs. This many, the pixels of
# three images, take 50 ms.
MAX_VALUES = 2**20
LENGTH_HEADER = "Inference-Header-Content-Length"
_MAX_TENSORS = 3  # that a model gives


def message_from_body(
    body: bytes, json_length: str | None, model_name: str, model_version: str
) -> oip.ModelInferRequest:
    """Read a request; `json_length` is the header that says where binary data begin.

    Raises InvalidRequest.
    """
    num_bytes = len(body) if json_length is None else _length(json_length, len(body))
    found = _object(_parsed(body[:num_bytes]), "body")
    try:
        return _message(found, body[num_bytes:], model_name, model_version)
    except UnicodeEncodeError as error:
        raise InvalidRequest("body", "half of a character, such as \\ud800", "Unicode") from error


def body_from_tensors(
    request: oip.ModelInferRequest, tensors: list[Tensor]
) -> tuple[bytes, int | None]:
    """An answer, and how long its JSON is if binary data follow it."""
    asked = {output.name: output.parameters for output in request.outputs}
    default = _is_true(request.parameters, "binary_data_output")
    outputs, binary = [], []
    for tensor in tensors:
        output: dict[str, Any] = {
            "name": tensor.name,
            "datatype": tensor.datatype,
            "shape": list(tensor.shape),
        }
        if _is_true(asked.get(tensor.name, {}), "binary_data", default=default):
            raw = tensor.raw()
            output["parameters"] = {"binary_data_size": len(raw)}
            binary.append(raw)
        else:
            output["data"] = _values(tensor)
        outputs.append(output)
    answer = {"model_name": request.model_name, "model_version": VERSION, "outputs": outputs}
    if request.id:
        answer["id"] = request.id
    text = json.dumps(answer, allow_nan=False).encode()
    return b"".join([text, *binary]), len(text) if binary else None


def _message(
    found: dict[str, Any], binary: bytes, model_name: str, model_version: str
) -> oip.ModelInferRequest:
    message = oip.ModelInferRequest(
        model_name=model_name, model_version=model_version, id=_text(found, "id", "id")
    )
    _set_parameters(message.parameters, found, "parameters")
    for number, output in enumerate(_objects(found, "outputs", _MAX_TENSORS)):
        asked = message.outputs.add(name=_text(output, "name", f"outputs[{number}].name"))
        _set_parameters(asked.parameters, output, f"outputs[{number}].parameters")
    given = _objects(found, "inputs", 1)
    if not given:
        raise InvalidRequest("inputs", "none", "one tensor")
    message.raw_input_contents.append(_add_input(message, given[0], binary))
    return message


def _add_input(message: oip.ModelInferRequest, given: dict[str, Any], binary: bytes) -> bytes:
    """Describe the tensor in the message, and return its raw contents."""
    shape = given.get("shape")
    if not isinstance(shape, list) or not all(_is_size(size) for size in shape):
        raise InvalidRequest("inputs[0].shape", "no list of numbers from 0 on")
    tensor = message.inputs.add(
        name=_text(given, "name", "inputs[0].name"),
        datatype=_text(given, "datatype", "inputs[0].datatype"),
        shape=shape[:5],  # one more than any model has; its check tells
    )
    _set_parameters(tensor.parameters, given, "inputs[0].parameters")
    if "binary_data_size" in tensor.parameters:
        if "data" in given:
            raise InvalidRequest("inputs[0].data", "beside binary_data_size", "one of them")
        size = tensor.parameters["binary_data_size"].int64_param
        if size != len(binary):
            raise InvalidRequest("inputs[0]", f"{len(binary)} bytes of binary data", str(size))
        return binary
    if binary:
        raise InvalidRequest("inputs[0]", "binary data without binary_data_size")
    elements = _flat(given.get("data"))
    if tensor.datatype == "BYTES":
        return raw_from_bytes(_decoded(number, each) for number, each in enumerate(elements))
    try:
        return bytes(elements)
    except (TypeError, ValueError) as error:
        raise InvalidRequest("inputs[0].data", "an element is no uint8", "0 to 255") from error


def _flat(data: object) -> list[Any]:
    """The elements of nested lists, in order."""
    if not isinstance(data, list):
        raise InvalidRequest("inputs[0].data", "no list", "one, or binary data")
    while data and isinstance(data[0], list):
        try:
            data = list(chain.from_iterable(data))
        except TypeError as error:
            raise InvalidRequest("inputs[0].data", "lists beside other values") from error
    return data


def _decoded(number: int, element: object) -> bytes:
    try:
        if isinstance(element, str):
            return base64.b64decode(element, validate=True)
    except (binascii.Error, ValueError):
        pass
    field = f"inputs[0].data[{number}]"
    raise InvalidRequest(field, "no base64", "a file in base64", "or send binary data")


def _is_true(parameters: Mapping[str, Any], name: str, *, default: bool = False) -> bool:
    return bool(parameters[name].bool_param) if name in parameters else default


def _values(tensor: Tensor) -> list[Any]:
    if isinstance(tensor.values, list):
        return [each.decode() for each in tensor.values]
    values: list[Any] = tensor.values.tolist()
    return values


def _length(text: str, most: int) -> int:
    length = whole_number(text)
    if length is None or length > most:
        raise InvalidRequest(LENGTH_HEADER, repr(text), f"at most the body's {most} bytes")
    return length


def _parsed(text: bytes) -> object:
    # Each value but the first of an object or list follows a comma.
    if sum(map(text.count, (b",", b"[", b"{"))) > MAX_VALUES:
        got, expected = "too many values in JSON", f"at most {MAX_VALUES}"
        raise InvalidRequest("body", got, expected, "send them as binary data")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest("body", f"can't be read as JSON ({error})") from error


def _object(value: object, field: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InvalidRequest(field, "no object of JSON")
    return value


def _objects(found: Mapping[str, Any], name: str, most: int) -> list[dict[str, Any]]:
    values = found.get(name, [])
    if not isinstance(values, list) or len(values) > most:
        got = f"{len(values)} of them" if isinstance(values, list) else "no list"
        raise InvalidRequest(name, got, f"a list of up to {most}")
    return [_object(value, f"{name}[{number}]") for number, value in enumerate(values)]


def _text(found: Mapping[str, Any], name: str, field: str) -> str:
    value = found.get(name, "")
    if not isinstance(value, str):
        raise InvalidRequest(field, "no string")
    return value


def _is_size(value: object) -> bool:
    return isinstance(value, int) and 0 <= value < 2**63


def _set_parameters(
    parameters: Any,  # noqa: ANN401 (a map of a message)
    found: Mapping[str, Any],
    field: str,
) -> None:
    for name, value in _object(found.get("parameters", {}), field).items():
        match value:
            case bool():
                parameters[name].bool_param = value
            case int() if -(2**63) <= value < 2**63:
                parameters[name].int64_param = value
            case float():
                parameters[name].double_param = value
            case str():
                parameters[name].string_param = value
            case _:
                raise InvalidRequest(f"{field}[{name!r}]", "no plain value")
