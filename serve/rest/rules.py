"""The paths of requests over HTTP."""

from tornado.routing import PathMatches, Rule

from irv2.serve.rest.classify import Classify
from irv2.serve.rest.open_inference import MODEL, Infer, Live, Metadata, Ready, Server
from irv2.serve.rest.openapi import OpenApi
from irv2.serve.rest.request import Desk


def rules(desk: Desk) -> list[Rule]:
    """Every path and what answers there."""
    handlers = {
        "/openapi.json": OpenApi,
        "/v1/classify": Classify,
        "/v2/?": Server,
        "/v2/health/live": Live,
        "/v2/health/ready": Ready,
        MODEL: Metadata,
        f"{MODEL}/ready": Ready,
        f"{MODEL}/infer": Infer,
    }
    return [Rule(PathMatches(path), handler, {"desk": desk}) for path, handler in handlers.items()]
