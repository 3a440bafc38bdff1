"""The objects of deploy/kubernetes: their fields exist, they fit each other and our programs."""

import copy
import os
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from kubernetes import FOLDER, KUSTOMIZE, build, one, pod_of
from project import SCHEMAS
from torch.distributed.run import get_args_parser

from irv2.convert.cli import export
from irv2.train.cli import main as train

BUILT = ["base", "overlays/keda", "overlays/hpa", "train", "export", "kserve"]
KUBERNETES = "1.37"
CRDS = {
    "ClusterServingRuntime": "kserve/clusterservingruntimes.yaml",
    "InferenceService": "kserve/inferenceservices.yaml",
    "ScaledObject": "keda/scaledobjects.yaml",
    "GRPCRoute": "gateway-api/grpcroutes.yaml",
}
WITHOUT_SCHEMA = {"ServiceMonitor"}

pytestmark = pytest.mark.skipif(
    KUSTOMIZE is None and "CI" not in os.environ, reason="neither kustomize nor kubectl is here"
)
needs_schemas = pytest.mark.skipif(
    not SCHEMAS.exists(), reason="the schemas are not beside the project"
)


def close(schema: Any) -> None:
    """Refuse fields that are not listed, which an API server drops without a word."""
    if isinstance(schema, list):
        for each in schema:
            close(each)
    elif isinstance(schema, dict):
        if "properties" in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
            schema.setdefault("additionalProperties", False)
        for each in schema.values():
            close(each)


@cache
def custom_validator(kind: str, version: str) -> jsonschema.Draft7Validator:
    text = (SCHEMAS / CRDS[kind]).read_bytes()
    versions = yaml.load(text, Loader=yaml.CSafeLoader)["spec"]["versions"]
    (schema,) = (each["schema"]["openAPIV3Schema"] for each in versions if each["name"] == version)
    close(schema)
    return jsonschema.Draft7Validator(schema)


def validate(thing: dict[str, Any]) -> None:
    kind = thing["kind"]
    if kind in CRDS:
        custom_validator(kind, thing["apiVersion"].rpartition("/")[2]).validate(thing)
    elif kind not in WITHOUT_SCHEMA:
        kubernetes_validate.validate(thing, KUBERNETES, strict=True)


@needs_schemas
@pytest.mark.parametrize("folder", BUILT)
def test_every_object_is_valid(folder):
    for thing in build(folder):
        validate(thing)


@needs_schemas
@pytest.mark.parametrize(
    ("folder", "kind", "path"),
    [
        ("base", "Deployment", ("spec", "template", "spec", "containers", 0, "readinessProbe")),
        ("export", "Job", ("spec", "podFailurePolicy", "rules", 0, "onExitCodes")),
        ("overlays/keda", "ScaledObject", ("spec", "triggers", 0)),
        ("overlays/keda", "GRPCRoute", ("spec", "rules", 0, "backendRefs", 0)),
        ("overlays/hpa", "HorizontalPodAutoscaler", ("spec", "metrics", 0, "pods")),
        ("kserve", "ClusterServingRuntime", ("spec", "containers", 0)),
        ("kserve", "InferenceService", ("spec", "predictor", "autoScaling", "metrics", 0)),
    ],
)
def test_a_misspelt_field_is_found_at_any_depth(folder, kind, path):
    thing = copy.deepcopy(one(folder, kind))
    place = thing
    for key in path:
        place = place[key]
    place["threshhold"] = "1"
    with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError)):
        validate(thing)


def test_every_folder_is_built_here():
    made = {path.parent.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("kustom*.yaml")}
    assert {folder for folder in made if not folder.startswith("components/")} == set(BUILT)


@pytest.mark.parametrize("folder", ["base", "overlays/keda", "overlays/hpa"])
def test_what_selects_the_servers_finds_them_and_their_ports(folder):
    template = one(folder, "Deployment")["spec"]["template"]
    labels = template["metadata"]["labels"].items()
    ports = {port["name"] for port in template["spec"]["containers"][0]["ports"]}
    service = one(folder, "Service", "irv2")
    assert service["spec"]["selector"].items() <= labels
    for thing in build(folder):
        spec = thing["spec"]
        if thing["kind"] in ("Deployment", "PodDisruptionBudget"):
            assert spec["selector"]["matchLabels"].items() <= labels
        if thing["kind"] == "NetworkPolicy":
            assert spec["podSelector"]["matchLabels"].items() <= labels
            assert {port["port"] for rule in spec["ingress"] for port in rule["ports"]} <= ports
        if thing["kind"] == "ServiceMonitor":
            assert spec["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
            assert {end["port"] for end in spec["endpoints"]} <= {
                port["name"] for port in service["spec"]["ports"]
            }
        if thing["kind"] == "GRPCRoute":
            (backend,) = spec["rules"][0]["backendRefs"]
            assert backend["name"] == service["metadata"]["name"]
            assert backend["port"] in {port["port"] for port in service["spec"]["ports"]}


@pytest.mark.parametrize(
    ("folder", "kind"),
    [("overlays/keda", "ScaledObject"), ("overlays/hpa", "HorizontalPodAutoscaler")],
)
def test_an_autoscaler_alone_decides_how_many_servers_there_are(folder, kind):
    deployment = one(folder, "Deployment")
    assert "replicas" not in deployment["spec"]
    assert one(folder, kind)["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]


def test_the_autoscalers_ask_the_same_of_the_same_number():
    """The query itself is asked of a real Prometheus in tests/e2e/test_prometheus.py."""
    (trigger,) = one("overlays/keda", "ScaledObject")["spec"]["triggers"]
    predictor = one("kserve", "InferenceService")["spec"]["predictor"]
    external = predictor["autoScaling"]["metrics"][0]["external"]
    query = trigger["metadata"]["query"]
    assert external["metric"]["query"] == query.replace('"irv2"', '"irv2-predictor"')
    (pods,) = one("overlays/hpa", "HorizontalPodAutoscaler")["spec"]["metrics"]
    assert pods["pods"]["metric"]["name"] in query
    targets = {
        float(trigger["metadata"]["threshold"]),
        float(external["target"]["averageValue"]),
        float(pods["pods"]["target"]["averageValue"].removesuffix("m")) / 1000,
    }
    assert targets == {0.25}


def test_torchrun_and_the_trainer_take_the_arguments_of_the_job(tmp_path):
    """The two-machine run itself is tests/e2e/test_machines.py."""
    job = one("train", "Job")
    (container,) = pod_of("train", "Job")["containers"]
    assert container["command"] == ["torchrun"]
    options = get_args_parser().parse_args(container["args"])
    assert (options.module, options.training_script) == (True, "irv2")
    assert options.nnodes == str(job["spec"]["completions"])
    assert int(options.nproc_per_node) == container["resources"]["limits"]["nvidia.com/gpu"]
    pod, name = options.rdzv_endpoint.partition(":")[0].split(".")
    assert (pod, name) == ("irv2-train-0", one("train", "Service")["metadata"]["name"])
    assert options.shutdown_timeout < pod_of("train", "Job")["terminationGracePeriodSeconds"]
    program, *arguments = options.training_script_args
    assert program == "train"
    train.make_context("irv2-train", here(arguments, tmp_path))


def test_the_export_publishes_where_the_servers_look_and_its_refusal_is_final(tmp_path):
    (container,) = pod_of("export", "Job")["containers"]
    program, *arguments = container["args"]
    assert program == "export"
    (tmp_path / "best.pt").touch()
    context = export.make_context("irv2-export", here(arguments, tmp_path))
    assert context.params["out"].name == "model.bundle"
    (server,) = pod_of("base", "Deployment")["containers"]
    assert f"--out={server['args'][0]}" in arguments
    assert "--watch" in server["args"]
    assert claim_at("/bundle", "base", "Deployment") == claim_at("/bundle", "export", "Job")
    final, _ = one("export", "Job")["spec"]["podFailurePolicy"]["rules"]
    assert final["onExitCodes"] == {"containerName": "export", "operator": "In", "values": [2, 3]}


def here(arguments: list[str], folder: Path) -> list[str]:
    """Arguments whose paths lie in a folder of this machine."""
    local = []
    for argument in arguments:
        option, equals, path = argument.rpartition("=")
        if path.startswith("/"):
            path = str(folder / path.rpartition("/")[2])
            if option == "--data":
                Path(path).mkdir()
        local.append(option + equals + path)
    return local


def claim_at(place: str, folder: str, kind: str) -> str:
    pod = pod_of(folder, kind)
    (mount,) = (
        mount for mount in pod["containers"][0]["volumeMounts"] if mount["mountPath"] == place
    )
    (volume,) = (volume for volume in pod["volumes"] if volume["name"] == mount["name"])
    return volume["persistentVolumeClaim"]["claimName"]
