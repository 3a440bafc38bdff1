"""POST /v1/classify: Classify over HTTP, for curl and browsers.

The body is one picture, or a form with files.
"""

from functools import partial

from google.rpc import status_pb2
from tornado.httputil import (
    HTTPFile,
    HTTPInputError,
    ParseMultipartConfig,
    parse_multipart_form_data,
)

from irv2.errors import InvalidRequest
from irv2.serve.rest.messages import Message, json_from_message
from irv2.serve.rest.request import Question, whole_number
from irv2.v1 import classifier_pb2

FIELDS = ("top_k", "id")  # of the query or the form
_FORM = "multipart/form-data"


class Classify(Question, Message):
    """One request, answered with the best classes of each picture."""

    method = "http/Classify"

    async def ask(self, body: bytes) -> status_pb2.Status | None:
        """Answer with a result for each picture, in order."""
        most = self.desk.current_model().pipeline.limits.max_images
        kind, query = self.request.headers.get("Content-Type", ""), self.request.query_arguments
        request = await self.read(partial(request_from_body, body, kind, query, most))
        if isinstance(request, status_pb2.Status):
            return request
        del body
        call = self.begin(request.id, len(request.images))
        work = self.desk.current_model().pipeline.classify(request, call.deadline)
        response = await self.desk.calls.outcome(work, call)
        if isinstance(response, status_pb2.Status):
            return response
        self.send(json_from_message(response))
        return None


def request_from_body(
    body: bytes, content_type: str, query: dict[str, list[bytes]], max_images: int
) -> classifier_pb2.ClassifyRequest:
    """Read a request. Raises InvalidRequest."""
    fields = {name: list(values) for name, values in query.items()}
    pictures = [body]
    if content_type.lower().startswith(_FORM):
        files = _read_form(body, content_type, fields, max_images)
        if len(files) > 1:  # their order would be lost
            got = f"files in {len(files)} fields"
            raise InvalidRequest("body", got, "all in one", "name that field for each")
        pictures = [file.body for field in files.values() for file in field]
    for name, values in fields.items():
        if name not in FIELDS or len(values) > 1:
            got = "twice" if name in FIELDS else "no such field"
            raise InvalidRequest(name, got, f"{' or '.join(FIELDS)}, once")
    return classifier_pb2.ClassifyRequest(
        images=[classifier_pb2.Image(encoded=picture) for picture in pictures],
        top_k=_top_k(fields),
        id=_text("id", fields),
    )


def _read_form(
    body: bytes, content_type: str, fields: dict[str, list[bytes]], max_images: int
) -> dict[str, list[HTTPFile]]:
    """The files by field; other fields are added to `fields`."""
    _, has_boundary, boundary = content_type.partition("boundary=")
    if not has_boundary:
        raise InvalidRequest("Content-Type", "no boundary", f"{_FORM}; boundary=...")
    files: dict[str, list[HTTPFile]] = {}
    # Room for one image too many, which admission tells better.
    limits = ParseMultipartConfig(max_parts=max_images + 1 + len(FIELDS))
    try:
        parse_multipart_form_data(
            boundary.partition(";")[0].strip().encode(), body, fields, files, config=limits
        )
    except (HTTPInputError, UnicodeDecodeError) as error:
        raise InvalidRequest("body", f"can't be read as a form ({error})") from error
    return files


def _top_k(fields: dict[str, list[bytes]]) -> int:
    text = _text("top_k", fields) or "0"
    top_k = whole_number(text)
    if top_k is None or top_k >= 2**32:
        raise InvalidRequest("top_k", repr(text), "a whole number from 0 on")
    return top_k


def _text(name: str, fields: dict[str, list[bytes]]) -> str:
    try:
        return fields[name][0].decode() if name in fields else ""
    except UnicodeDecodeError as error:
        raise InvalidRequest(name, "bytes that are no UTF-8") from error
