"""The paths of requests over HTTP."""

from http import HTTPStatus

from tornado.routing import PathMatches, Rule
from tornado.web import RequestHandler

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


def rules_without_model(*, has_page: bool) -> list[Rule]:
    """For a process that runs the engine of several front ends, and answers no request itself."""
    paths = ["/v[12](/.*)?", *(["/"] if has_page else [])]
    return [Rule(PathMatches(path), _NoModel) for path in paths]


class _NoModel(RequestHandler):
    def get(self, *_: str) -> None:
        got = "several front ends answer over gRPC alone; ask there, or start with --front-ends 1"
        self.set_status(HTTPStatus.NOT_IMPLEMENTED)
        self.finish({"error": f"server: {got}"})

    post = get
