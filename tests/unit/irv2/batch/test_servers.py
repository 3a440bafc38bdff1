"""Several servers: each takes what it can answer, one that fails is left, and no row is lost."""

import threading
import time
from contextlib import ExitStack

import pytest
from scripted_server import Scripted, served

from irv2.batch import servers as module
from irv2.batch.servers import Servers
from irv2.batch.source import Picture, Source
from irv2.client import Client
from irv2.errors import RequestError, UsageError
from irv2.v1 import classifier_pb2

NUM = 120


class Answering(Scripted):
    """Answers with the picture's bytes as its class; breaks after some calls, for some calls."""

    def __init__(self, *, seconds=0.0, works_for=10**6, broken_for=10**6, model="m") -> None:
        super().__init__()
        self.seconds, self.model = seconds, model
        self.broken = range(works_for, works_for + broken_for)
        self.lock, self.num_calls, self.num_answered = threading.Lock(), 0, 0

    def GetModel(self, request, context):  # noqa: N802 (gRPC's name)
        limits = classifier_pb2.Limits(max_message_bytes=2**20, max_images=4)
        model = classifier_pb2.Model(id=self.model, max_batch=4)
        return classifier_pb2.GetModelResponse(limits=limits, model=model)

    def Classify(self, request, context):  # noqa: N802
        with self.lock:
            is_broken = self.num_calls in self.broken
            self.num_calls += 1
        time.sleep(self.seconds)
        if is_broken:
            context.abort(13, "internal error")
        with self.lock:
            self.num_answered += len(request.images)
        scores = [classifier_pb2.Score(label=image.encoded.decode()) for image in request.images]
        results = [classifier_pb2.Result(scores=[score]) for score in scores]
        return classifier_pb2.ClassifyResponse(results=results, model_id=self.model)


@pytest.fixture
def source(tmp_path) -> Source:
    for number in range(NUM):
        (tmp_path / f"{number}.jpg").write_text(f"class {number}")
    return Source(tmp_path)


def asked(source: Source, *scripted: Answering, rows: list | None = None) -> list:
    """The rows from these servers, also in `rows` as they come."""
    rows = [] if rows is None else rows
    with ExitStack() as stack:
        addresses = [stack.enter_context(served(each)) for each in scripted]
        clients = [stack.enter_context(Client(address)) for address in addresses]
        servers = stack.enter_context(Servers(clients, source, 1, None))
        for row in servers.answers(Picture(f"{number}.jpg") for number in range(NUM)):
            rows.append(row)
    return rows


def require_all(rows: list, without: range = range(0)) -> None:
    assert [row.name for row in rows] == [f"{number}.jpg" for number in range(NUM)]
    for number, row in enumerate(rows):
        if number not in without:
            assert row.result.scores[0].label == f"class {number}"


def test_a_fast_server_gets_more_than_a_slow_one(source):
    fast, slow = Answering(seconds=0.002), Answering(seconds=0.2)
    require_all(asked(source, fast, slow))
    assert fast.num_answered > 2 * slow.num_answered > 0
    assert fast.num_answered + slow.num_answered == NUM


def test_what_a_failed_server_had_goes_to_the_others(source, caplog):
    # The one that goes on is slow, so that the other one has time to take some and to fail.
    good, failing = Answering(seconds=0.02), Answering(works_for=3)
    require_all(asked(source, good, failing))
    assert failing.num_calls > 3
    assert "internal error; the other servers go on" in caplog.text


def test_pictures_that_cannot_be_read_need_no_server(source):
    for number in range(10, 20):
        (source.path / f"{number}.jpg").unlink()
    rows = asked(source, Answering())
    require_all(rows, without=range(10, 20))
    assert all("No such file" in str(row.result.error) for row in rows[10:20])


def test_a_list_that_breaks_off_is_an_error_and_not_the_end():
    """Whichever server's thread meets it, and although the next one finds nothing more to read."""

    def broken():
        yield from ()
        raise ValueError("the list breaks off")

    unread = module._Pass([], broken(), 1, "m")
    with pytest.raises(ValueError, match="breaks off"):
        list(unread._take(module._Session()))
    assert list(unread._take(module._Session())) == []
    with pytest.raises(ValueError, match="breaks off"):
        list(unread.rows())


def test_a_server_that_comes_back_is_asked_again(source, monkeypatch, caplog):
    monkeypatch.setattr(module, "ASK_AGAIN_S", 0.02)
    caplog.set_level("INFO")
    other, failing = Answering(seconds=0.05), Answering(works_for=2, broken_for=1)
    require_all(asked(source, other, failing))
    assert "answers again" in caplog.text
    assert failing.num_calls > 5


def test_the_rows_that_there_are_come_before_the_error_when_all_have_failed(source):
    rows = []
    with pytest.raises(RequestError, match="internal error"):
        asked(source, Answering(works_for=8), Answering(works_for=9), rows=rows)
    assert 0 < len(rows) < NUM
    assert [row.name for row in rows] == [f"{number}.jpg" for number in range(len(rows))]


def test_a_picture_that_fails_everywhere_ends_the_work(source, monkeypatch):
    monkeypatch.setattr(module, "ASK_AGAIN_S", 0.01)

    class Refusing(Answering):
        def Classify(self, request, context):  # noqa: N802 (gRPC's name)
            if b"class 50" in [image.encoded for image in request.images]:
                time.sleep(0.1)  # so that the others are back
                context.abort(13, "internal error")
            return super().Classify(request, context)

    with pytest.raises(RequestError, match="internal error"):
        asked(source, Refusing(), Refusing(), Refusing())


def test_a_server_that_changes_its_model_is_left(source, caplog):
    class Changing(Answering):
        def Classify(self, request, context):  # noqa: N802 (gRPC's name)
            self.model = "m" if self.num_calls < 2 else "another"
            return super().Classify(request, context)

    require_all(asked(source, Answering(seconds=0.02), Changing()))
    assert "changed to model another meanwhile; expected m" in caplog.text


def test_servers_of_several_models_are_refused(source):
    with pytest.raises(UsageError, match=r"serves m, .* serves n; expected one model"):
        asked(source, Answering(), Answering(model="n"))
