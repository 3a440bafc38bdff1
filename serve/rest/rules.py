"""The paths of requests over HTTP."""

from tornado.routing import PathMatches, Rule

from irv2.serve.rest.classify import Classify
from irv2.serve.rest.model import GetModel
from irv2.serve.rest.open_inference import MODEL, Infer, Live, Metadata, Ready, Server
from irv2.serve.rest.openapi import OpenApi
from irv2.serve.rest.page import Page
from irv2.serve.rest.request import Desk


def rules(desk: Desk, *, has_page: bool) -> list[Rule]:
    """Every path and what answers there."""
    handlers = {
        **({"/": Page} if has_page else {}),
        "/openapi.json": OpenApi,
        "/v1/classify": Classify,
        "/v1/model": GetModel,
        "/v2/?": Server,
        "/v2/health/live": Live,
        "/v2/health/ready": Ready,
        MODEL: Metadata,
        f"{MODEL}/ready": Ready,
        f"{MODEL}/infer": Infer,
    }
    return [Rule(PathMatches(path), handler, {"desk": desk}) for path, handler in handlers.items()]
