"""The objects of deploy/kubernetes, as a cluster would get them."""

import shutil
import subprocess
from functools import cache
from typing import Any

import yaml
from project import ROOT

FOLDER = ROOT / "deploy" / "kubernetes"
KUSTOMIZE = next(
    (
        command
        for command in (["kustomize", "build"], ["kubectl", "kustomize"])
        if shutil.which(command[0])
    ),
    None,
)


@cache
def build(folder: str) -> list[dict[str, Any]]:
    """Return what `kubectl apply -k` would send."""
    done = subprocess.run(
        [*KUSTOMIZE, FOLDER / folder], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr, done.stderr  # warnings of what is deprecated
    return list(yaml.safe_load_all(done.stdout))


def one(folder: str, kind: str, name: str = "") -> dict[str, Any]:
    """Return the object of this kind; by name where there are several."""
    (found,) = (
        each
        for each in build(folder)
        if each["kind"] == kind and name in ("", each["metadata"]["name"])
    )
    return found


def pod_of(folder: str, kind: str) -> dict[str, Any]:
    """Return the pods of a Deployment, a Job or a ClusterServingRuntime."""
    spec = one(folder, kind)["spec"]
    return spec["template"]["spec"] if "template" in spec else spec
