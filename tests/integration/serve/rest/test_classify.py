"""Pictures over HTTP: by plain requests, by curl, and what a browser must not do."""

import asyncio
import json
import shutil
import subprocess

import pytest
from google.protobuf.json_format import ParseDict
from http_site import HTTP, ask
from serving_site import jpeg, scenario_with

from irv2.v1.classifier_pb2 import ClassifyRequest, ClassifyResponse, Image

PATH = "/v1/classify"
FORM = "multipart/form-data; boundary=x"


def form(*files: bytes, name: str = "image", **fields: str) -> bytes:
    head = 'Content-Disposition: form-data; name="{}"'
    parts = [(head.format(field), value.encode()) for field, value in fields.items()]
    parts += [(head.format(name) + f'; filename="{n}"', file) for n, file in enumerate(files)]
    sent = b"".join(b"--x\r\n%b\r\n\r\n%b\r\n" % (head.encode(), body) for head, body in parts)
    return sent + b"--x--\r\n"


def test_a_form_is_answered_like_classify_and_a_bad_picture_fails_alone(bundle):
    pictures = [jpeg(0), b"no picture", jpeg(1)]

    async def scenario(site):
        asked = ClassifyRequest(images=[Image(encoded=p) for p in pictures], top_k=3, id="7")
        expected = await site.stub.Classify(asked)
        for path, sent in [
            (PATH, form(*pictures, top_k="3", id="7")),
            (f"{PATH}?top_k=3&id=7", form(*pictures)),
        ]:
            answer = await ask(site, path, sent, Content_Type=FORM)
            assert (answer.status, answer.headers["Content-Type"]) == (200, "application/json")
            found = ParseDict(answer.json, ClassifyResponse())
            assert found.timing.total_us > 0
            found.timing.CopyFrom(expected.timing)
            for given, result in zip(expected.results, found.results, strict=True):
                for one, other in zip(given.scores, result.scores, strict=True):
                    assert one.probability == pytest.approx(other.probability, abs=1e-5)
                    one.probability = other.probability
            assert found == expected
            error = answer.json["results"][1]["error"]
            assert error["details"][0]["reason"] == "NOT_AN_IMAGE"

    scenario_with(bundle, scenario, http=HTTP)


def test_a_body_of_any_other_type_is_one_picture(bundle):
    async def scenario(site):
        for kind in ("image/jpeg", "application/x-www-form-urlencoded"):
            (result,) = (await ask(site, PATH, jpeg(0), Content_Type=kind)).json["results"]
            assert len(result["scores"]) == 5
            assert "error" not in result
        (result,) = (await ask(site, PATH, b"")).json["results"]
        assert result["error"]["details"][0]["reason"] in ("EMPTY", "NOT_AN_IMAGE")

    scenario_with(bundle, scenario, http=HTTP)


@pytest.mark.parametrize(
    ("path", "sent", "kind", "message"),
    [
        ("?top_k=-1", jpeg(0), "image/jpeg", "top_k: '-1'"),
        ("?top_k=" + "9" * 5000, jpeg(0), "image/jpeg", "top_k: '999"),
        ("?top_k=1&top_k=2", jpeg(0), "image/jpeg", "top_k: twice"),
        ("?topk=1", jpeg(0), "image/jpeg", "topk: no such field"),
        ("?id=%FF", jpeg(0), "image/jpeg", "id: bytes"),
        ("", form(jpeg(0), topk="1"), FORM, "topk: no such field"),
        ("", form(), FORM, "images: 0 of them"),
        ("", form(*[b"x"] * 21), FORM, "images: 21 of them"),
        ("", form(*[b"x"] * 99), FORM, "body: can't be read as a form"),
        ("", form(jpeg(0))[:-7] + form(jpeg(0), name="b"), FORM, "body: files in 2 fields"),
        ("", form(jpeg(0)), "multipart/form-data", "Content-Type: no boundary"),
        ("", b"--x", FORM, "body: can't be read as a form"),
    ],
)
def test_a_wrong_request_is_one_line_about_its_field(bundle, path, sent, kind, message):
    async def scenario(site):
        answer = await ask(site, PATH + path, sent, Content_Type=kind)
        error = answer.json["error"]
        assert (answer.status, error["code"], error["status"]) == (400, 400, "INVALID_ARGUMENT")
        assert error["message"].startswith(message)
        assert error["details"][0]["field_violations"][0]["field"] == message.partition(":")[0]

    scenario_with(bundle, scenario, http=HTTP)


def test_refusals_have_the_words_of_grpc_and_say_when_to_come_back(bundle):
    async def scenario(site):
        await ask(site, PATH, jpeg(0))
        site.runner.seconds = 0.3
        waiting = asyncio.create_task(ask(site, PATH, form(*[jpeg(0)] * 20), Content_Type=FORM))
        await asyncio.sleep(0.2)
        refused = await ask(site, PATH, jpeg(0))
        assert (refused.status, refused.headers["Retry-After"]) == (429, "1")
        error = refused.json["error"]
        assert (error["code"], error["status"]) == (429, "RESOURCE_EXHAUSTED")
        assert error["details"][0]["retry_delay"].endswith("s")
        assert (await waiting).status == 200
        late = await ask(site, PATH, jpeg(0), Request_Timeout_Ms="50")
        assert (late.status, late.json["error"]["status"]) == (504, "DEADLINE_EXCEEDED")

    scenario_with(bundle, scenario, http=HTTP, max_queue=20)


def test_other_methods_and_pages_of_other_sites_are_refused(bundle):
    async def scenario(site):
        host, _, port = site.server.description["http"].rpartition(":")
        for method in ("GET", "PUT", "BREW"):
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(f"{method} {PATH} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            assert (await reader.readline()).startswith(b"HTTP/1.1 405 ")
            writer.close()
        foreign = await ask(site, PATH, jpeg(0), Origin="http://elsewhere.example")
        assert foreign.status == 403
        own = f"http://{site.server.description['http']}"
        assert (await ask(site, PATH, jpeg(0), Origin=own)).status == 200

    scenario_with(bundle, scenario, http=HTTP)


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is missing")
def test_curl_sends_files_in_one_line(bundle, tmp_path):
    for number in (0, 1):
        (tmp_path / f"{number}.jpg").write_bytes(jpeg(number))

    async def scenario(site):
        url = f"http://{site.server.description['http']}{PATH}"
        command = ["curl", "-sf", "-F", "image=@0.jpg", "-F", "image=@1.jpg", url]
        run = subprocess.run
        done = await asyncio.to_thread(run, command, cwd=tmp_path, check=True, capture_output=True)
        assert [len(each["scores"]) for each in json.loads(done.stdout)["results"]] == [5, 5]

    scenario_with(bundle, scenario, http=HTTP)
