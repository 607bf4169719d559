"""deploy/kubernetes as kustomize puts it together, and as its schemas would have it."""

import copy
import json
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import yaml

from tests.services import ROOT

FOLDER = ROOT / "deploy" / "kubernetes"
OVERLAYS = ("base", "keda", "keda-prometheus", "hpa")
VERSIONS = ("1.27", "1.37")  # of Kubernetes

Manifest = dict[str, Any]


def documents(path: Path) -> list[Manifest]:
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


@cache
def _rendered(name: str) -> tuple[Manifest, ...]:
    [kustomization] = documents(FOLDER / name / "kustomization.yaml")
    found: list[Manifest] = []
    for resource in kustomization["resources"]:
        path = (FOLDER / name / resource).resolve()
        found += _rendered(path.name) if path.is_dir() else documents(path)
    found = copy.deepcopy(found)
    for patch in kustomization.get("patches", ()):
        [target] = [one for one in found if (one["kind"], one["metadata"]["name"]) == (
            patch["target"]["kind"], patch["target"]["name"])]
        for step in yaml.safe_load((FOLDER / name / patch["path"]).read_text()):
            assert (step["op"], step["path"]) == ("add", "/spec/triggers/-")
            target["spec"]["triggers"].append(step["value"])
    return tuple(found)


def rendered(name: str) -> list[Manifest]:
    """The objects of an overlay."""
    return copy.deepcopy(list(_rendered(name)))


def the(kind: str, name: str, overlay: str = "base") -> Manifest:
    [found] = [one for one in rendered(overlay) if (one["kind"], one["metadata"]["name"]) == (kind, name)]
    return found


def check(manifest: Manifest, version: str) -> None:
    """Refuse what Kubernetes, or KEDA, would not take, or would leave out without a word."""
    if manifest["apiVersion"].startswith("keda.sh/"):
        assert (manifest["apiVersion"], manifest["kind"]) == ("keda.sh/v1alpha1", "ScaledObject")
        jsonschema.validate(manifest, _keda())
    else:
        kubernetes_validate.validate(manifest, version, strict=True)


@cache
def _keda() -> dict[str, Any]:
    return dict(json.loads((ROOT / "tests" / "schemas" / "keda-scaledobject.json").read_text()))
