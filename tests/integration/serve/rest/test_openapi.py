"""The OpenAPI document: each of its paths answers as it says."""

import base64
import json

from http_site import HTTP, ask
from jsonschema import Draft202012Validator
from serving_site import jpeg, scenario_with
from tiny_bundle import write_tiny_bundle

from irv2.bundle import Bundle


def test_every_path_is_there_and_answers_by_its_schema(tmp_path):
    data = [base64.b64encode(jpeg(0)).decode()]
    asked = {"inputs": [{"name": "files", "datatype": "BYTES", "shape": [1], "data": data}]}
    posts = {
        "/v1/classify": [(jpeg(0), 200), (b"no picture", 200)],
        "/v2/models/{name}/infer": [(json.dumps(asked).encode(), 200), (b"{}", 400)],
    }

    async def scenario(site):
        document = (await ask(site, "/openapi.json")).json
        schemas = {"components": document["components"]}
        assert document["openapi"].startswith("3.1.")
        asked_of = set()
        for path, item in document["paths"].items():
            place = path.replace("{name}", "irv2-files")
            for method in {"get", "post"} & item.keys():
                for body, expected in posts[path] if method == "post" else [(None, 200)]:
                    answer = await ask(site, place, body)
                    assert answer.status == expected, path
                    content = item[method]["responses"][str(expected)]["content"]
                    if "application/json" in content:
                        schema = content["application/json"]["schema"] | schemas
                        Draft202012Validator.check_schema(schema)
                        Draft202012Validator(schema).validate(answer.json)
                    asked_of.add(path)
        assert asked_of == document["paths"].keys()
        refused = await ask(site, "/v1/classify?top_k=x", jpeg(0))
        schema = {"$ref": "#/components/schemas/StatusError"} | schemas
        Draft202012Validator(schema).validate(refused.json)

    bundle = Bundle.open(write_tiny_bundle(tmp_path / "tiny.bundle"))
    scenario_with(bundle, scenario, http=HTTP)
