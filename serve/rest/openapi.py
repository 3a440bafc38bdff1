"""GET /openapi.json: the paths of the HTTP port, for people's generators of clients."""

from typing import Any

from irv2 import __version__
from irv2.serve.rest.request import TIMEOUT_HEADER, Reply
from irv2.serve.rest.tensors import LENGTH_HEADER

Schema = dict[str, Any]
_TEXT: Schema = {"type": "string"}
_COUNT: Schema = {"type": "integer", "minimum": 0}


class OpenApi(Reply):
    """The document; it tells nothing about this server, and is open to everyone."""

    def get(self) -> None:
        """Send it."""
        self.send(document())


def document() -> Schema:
    """What the port answers, by the OpenAPI Specification 3.1."""
    return {
        "openapi": "3.1.0",
        "info": {"title": "irv2-serve", "version": __version__, "description": _ABOUT},
        "paths": {
            "/": {"get": _plain("A page for browsers, unless --no-page", "text/html")},
            "/v1/classify": {"post": _CLASSIFY},
            "/v1/model": {
                "get": _get("The model, its verdicts and the limits", "Model", form="StatusError")
            },
            "/v2": {"get": _get("Name, version and extensions", "Server")},
            "/v2/health/live": {"get": _get("Whether the server is alive", "Any", is_open=True)},
            "/v2/health/ready": {
                "get": _get("Whether it wants requests", "Any", 503, is_open=True)
            },
            "/v2/models/{name}": {
                "parameters": [_NAME],
                "get": _get("The tensors of a model", "Metadata", 404),
            },
            "/v2/models/{name}/ready": {
                "parameters": [_NAME],
                "get": _get("Whether the model wants requests", "Any", 404, 503, is_open=True),
            },
            "/v2/models/{name}/infer": {"parameters": [_NAME], "post": _INFER},
            "/healthz": {"get": _plain("alive")},
            "/readyz": {"get": _plain("ready, or 503")},
            "/metrics": {"get": _plain("Prometheus' metrics")},
        },
        "components": {
            "schemas": _SCHEMAS,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"token": []}],
    }


_ABOUT = (
    "Inception-ResNet-v2 over HTTP. The paths under /v2 are those of the Open Inference Protocol; "
    "/versions/1 may follow the name of a model."
)


def _object(required: str, **properties: Schema) -> Schema:
    return {"type": "object", "properties": properties, "required": required.split()}


def _list(of: str | Schema) -> Schema:
    return {"type": "array", "items": _ref(of) if isinstance(of, str) else of}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _json(name: str) -> Schema:
    return {"application/json": {"schema": _ref(name)}}


def _get(
    summary: str, answer: str, *refusals: int, is_open: bool = False, form: str = "TextError"
) -> Schema:
    found = {
        "summary": summary,
        "responses": {"200": {"description": "OK", "content": _json(answer)}}
        | _refusals(form, *refusals, *(() if is_open else (401,))),
    }
    return found | ({"security": []} if is_open else {})


def _plain(summary: str, content_type: str = "text/plain") -> Schema:
    content = {content_type: {"schema": _TEXT}}
    answer = {"200": {"description": "OK", "content": content}}
    return {"summary": summary, "responses": answer, "security": []}


def _refusals(form: str, *codes: int) -> Schema:
    return {str(code): {"description": _WHY[code], "content": _json(form)} for code in codes}


_WHY = {
    400: "The request is malformed",
    401: "The caller has no valid token",
    404: "There is no such model",
    413: "The body is too large, and always will be",
    429: "There is no time or place for it; Retry-After says when to ask again",
    500: "An unforeseen failure",
    503: "The server starts or stops; Retry-After says when to ask again",
    504: "The deadline has passed",
}
_NAME = {"name": "name", "in": "path", "required": True, "schema": _TEXT}
_TIMEOUT = {
    "name": TIMEOUT_HEADER,
    "in": "header",
    "description": "Milliseconds from arrival to the deadline",
    "schema": {"type": "number", "minimum": 0},
}
_BINARY: Schema = {"type": "string", "contentMediaType": "application/octet-stream"}
_CLASSIFY = {
    "summary": "The best classes of each picture; one that fails does so alone",
    "parameters": [
        {"name": "top_k", "in": "query", "description": "0 is 5", "schema": _COUNT},
        {"name": "id", "in": "query", "description": "Comes back in the answer", "schema": _TEXT},
        _TIMEOUT,
    ],
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {"top_k": _COUNT, "id": _TEXT},
                    "additionalProperties": _list(_BINARY),
                    "description": "Files in one field of any name",
                }
            },
            "image/*": {"schema": _BINARY},
            "application/octet-stream": {"schema": _BINARY},
        },
    },
    "responses": {"200": {"description": "OK", "content": _json("Classified")}}
    | _refusals("StatusError", 400, 401, 413, 429, 500, 503, 504),
}
_INFER = {
    "summary": "Tensors for tensors, in JSON or with binary data after it",
    "parameters": [
        _TIMEOUT,
        {
            "name": LENGTH_HEADER,
            "in": "header",
            "description": "Bytes of JSON, if binary data follow",
            "schema": _COUNT,
        },
    ],
    "requestBody": {
        "required": True,
        "content": _json("Request") | {"application/octet-stream": {"schema": _BINARY}},
    },
    "responses": {
        "200": {
            "description": "OK",
            "content": _json("Response") | {"application/octet-stream": {"schema": _BINARY}},
        }
    }
    | _refusals("TextError", 400, 401, 404, 413, 429, 500, 503, 504),
}
_DESCRIBED = _object(
    "name datatype shape", name=_TEXT, datatype=_TEXT, shape=_list({"type": "integer"})
)
_PARAMETERS: Schema = {
    "type": "object",
    "additionalProperties": {"type": ["boolean", "number", "string"]},
}
_TENSOR = {
    **_object(
        "name datatype shape",
        name=_TEXT,
        datatype={"enum": ["UINT8", "FP32", "BYTES"]},
        shape=_list(_COUNT),
        data={"type": "array"},
        parameters=_PARAMETERS,
    ),
    "oneOf": [{"required": ["data"]}, {"required": ["parameters"]}],
}
_SCHEMAS: Schema = {
    "Any": {"type": "object"},
    "Server": _object(
        "name version extensions", name=_TEXT, version=_TEXT, extensions=_list(_TEXT)
    ),
    "Metadata": _object(
        "name versions platform inputs outputs",
        name=_TEXT,
        versions=_list(_TEXT),
        platform=_TEXT,
        inputs=_list(_DESCRIBED),
        outputs=_list(_DESCRIBED),
    ),
    "Tensor": _TENSOR,
    "Request": _object(
        "inputs",
        id=_TEXT,
        parameters=_PARAMETERS,
        inputs=_list("Tensor"),
        outputs=_list(_object("name", name=_TEXT, parameters=_PARAMETERS)),
    ),
    "Response": _object(
        "model_name model_version outputs",
        model_name=_TEXT,
        model_version=_TEXT,
        id=_TEXT,
        outputs=_list("Tensor"),
    ),
    "TextError": _object("error", error=_TEXT),
    "Classified": _object(
        "results id model_id timing",
        results=_list("Result"),
        id=_TEXT,
        model_id=_TEXT,
        timing=_object(
            "queue_us preprocess_us inference_us total_us",
            queue_us=_COUNT,
            preprocess_us=_COUNT,
            inference_us=_COUNT,
            total_us=_COUNT,
        ),
    ),
    "Result": _object(
        "scores orientation", scores=_list("Score"), orientation=_COUNT, error=_ref("Status")
    ),
    "Score": _object(
        "index label probability", index=_COUNT, label=_TEXT, probability={"type": "number"}
    ),
    "Status": _object(
        "code message details",
        code={"type": "integer"},
        status=_TEXT,
        message=_TEXT,
        details=_list(_object("@type", **{"@type": _TEXT, "reason": _TEXT})),
    ),
    "StatusError": _object("error", error=_ref("Status")),
    "Model": _object(
        "model limits artifact artifacts signature",
        model=_object("id arch classes precision backend", id=_TEXT, classes=_list(_TEXT)),
        limits={"type": "object", "additionalProperties": {"type": ["string", "integer"]}},
        artifact=_TEXT,
        artifacts=_list(
            _object(
                "file precision evidence",
                file=_TEXT,
                precision=_TEXT,
                evidence=_list(_object("backend parity", backend=_TEXT)),
            )
        ),
        signature={"enum": ["verified", "unchecked", "none"]},
    ),
}
