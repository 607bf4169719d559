"""deploy/: manifests and units that hold by their schemas, agree with each other and with the code, and run."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from callsheet import Msg, Settings
from callsheet.settings import use_settings
from callsheet.workers.metrics.collector import FAMILIES
from tests.agents.gated import CpuGated, Gated
from tests.manifests import FOLDER, OVERLAYS, VERSIONS, Manifest, check, documents, rendered, the
from tests.services import ROOT, RedisServer, free_port, wait_for

BIN = Path(sys.executable).parent
UNITS = sorted((ROOT / "deploy" / "systemd").glob("*.service"))
WORKERS = ("io", "cpu")
CONFIG: dict[str, str] = the("ConfigMap", "callsheet")["data"]
SECRETS = documents(FOLDER / "base" / "secrets.example.yaml")
SOFT_SHUTDOWN = float(CONFIG["CALLSHEET_SOFT_SHUTDOWN"])


def everything() -> list[Manifest]:
    return [*rendered("keda-prometheus"), *rendered("hpa"), *SECRETS]


def pods() -> dict[str, Manifest]:
    """The pod templates by the name of what makes them."""
    return {one["metadata"]["name"]: one["spec"]["template"] for one in rendered("base")
            if one["kind"] in ("Deployment", "StatefulSet")}


def container(name: str) -> Manifest:
    [found] = pods()[name]["spec"]["containers"]
    return dict(found)


def labelled(**wanted: str) -> list[str]:
    return [name for name, pod in pods().items() if wanted.items() <= pod["metadata"]["labels"].items()]


# By their schemas


@pytest.mark.parametrize("version", VERSIONS)
def test_kubernetes_and_keda_take_every_object(version: str) -> None:
    for manifest in everything():
        check(manifest, version)


@pytest.mark.parametrize(("kind", "name", "change"), [
    ("Deployment", "callsheet-io", lambda one: one["spec"].update(replica=2)),
    ("Deployment", "callsheet-io", lambda one: one["spec"]["template"]["spec"].update(terminationGracePeriod=3)),
    ("Deployment", "callsheet-io", lambda one: one["spec"].pop("selector")),
    ("Service", "callsheet-redis", lambda one: one["spec"]["ports"][0].update(port="redis")),
    ("HorizontalPodAutoscaler", "callsheet-io", lambda one: one["spec"].update(maxReplicaCount=2)),
    ("ScaledObject", "callsheet-io", lambda one: one["spec"].update(maxReplicas=2)),
    ("ScaledObject", "callsheet-io", lambda one: one["spec"].pop("scaleTargetRef")),
    ("ScaledObject", "callsheet-io", lambda one: one["spec"]["triggers"][0]["metadata"].update(listLength=5)),
    ("ScaledObject", "callsheet-io", lambda one: one["spec"]["triggers"][0].update(metrictype="Value")),
])
def test_what_is_wrong_in_one_is_found(kind: str, name: str, change: Callable[[Manifest], Any]) -> None:
    [manifest, *_] = [one for one in everything() if (one["kind"], one["metadata"]["name"]) == (kind, name)]
    change(manifest)
    with pytest.raises(jsonschema.ValidationError):
        check(manifest, VERSIONS[-1])


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is missing")
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_kubectl_puts_together_what_is_tested_here(overlay: str, tmp_path: Path) -> None:
    shutil.copytree(FOLDER, tmp_path / "kubernetes")
    given = tmp_path / "kubernetes" / "keda" / "kustomization.yaml"
    given.write_text(given.read_text().replace("namespace: callsheet", "namespace: elsewhere"))
    done = subprocess.run(["kubectl", "kustomize", str(tmp_path / "kubernetes" / overlay)], capture_output=True,
                          text=True, check=True)
    theirs = {(one["kind"], one["metadata"]["name"]): one for one in yaml.safe_load_all(done.stdout)}
    ours = {(one["kind"], one["metadata"]["name"]): one for one in rendered(overlay)}
    assert theirs.keys() == ours.keys()
    for key, one in theirs.items():
        check(one, VERSIONS[-1])
        if one["kind"] == "ScaledObject":
            for trigger in ours[key]["spec"]["triggers"]:
                if "address" in trigger["metadata"]:  # in the namespace where all is put
                    trigger["metadata"]["address"] = "callsheet-redis.elsewhere.svc.cluster.local:6379"
            assert one["spec"] == ours[key]["spec"]


# With each other


def test_names_that_refer_to_something_refer_to_what_there_is() -> None:
    names = {(one["kind"], one["metadata"]["name"]) for one in everything()}
    for one in everything():
        spec = one.get("spec", {})
        if "scaleTargetRef" in spec:
            assert ("Deployment", spec["scaleTargetRef"]["name"]) in names and one["metadata"]["name"] in pods()
        if one["kind"] == "Service":
            [pod] = labelled(**spec["selector"])
            ports = {port["name"] for port in container(pod)["ports"]}
            assert {port["targetPort"] for port in spec["ports"]} <= ports
        if one["kind"] in ("PodDisruptionBudget", "Deployment", "StatefulSet"):
            assert labelled(**spec["selector"]["matchLabels"]) == [one["metadata"]["name"]]
        if one["kind"] == "StatefulSet":
            assert ("Service", spec["serviceName"]) in names
    policy = the("NetworkPolicy", "callsheet-redis")["spec"]
    [among] = policy["ingress"][0]["from"][0]["podSelector"]["matchExpressions"]
    assert all(labelled(**{among["key"]: value}) for value in among["values"])
    assert labelled(**policy["podSelector"]["matchLabels"]) == ["callsheet-redis"]


@pytest.mark.parametrize("pod", sorted(pods()))
def test_a_pod_finds_its_settings_keys_ports_and_volumes(pod: str) -> None:
    maps = {one["metadata"]["name"]: one["data"] for one in rendered("base") if one["kind"] == "ConfigMap"}
    secrets = {one["metadata"]["name"]: one["stringData"] for one in SECRETS}
    spec, one = pods()[pod]["spec"], container(pod)
    for source in one.get("envFrom", ()):
        assert source.get("configMapRef", {}).get("name") in maps or source["secretRef"]["name"] in secrets
    for variable in one.get("env", ()):
        source = variable.get("valueFrom")
        if source is None:
            continue
        wanted = source.get("configMapKeyRef") or source["secretKeyRef"]
        assert wanted["key"] in (maps if "configMapKeyRef" in source else secrets)[wanted["name"]]
        assert not wanted.get("optional")
    ports = {port["name"] for port in one["ports"]}
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        for kind in ("httpGet", "tcpSocket"):
            assert one.get(probe, {}).get(kind, {"port": next(iter(ports))})["port"] in ports
    kept = {volume["name"] for volume in spec.get("volumes", ())} | {"data"}
    assert {mount["name"] for mount in one["volumeMounts"]} <= kept


@pytest.mark.parametrize("pod", sorted(pods()))
def test_a_pod_can_do_no_more_than_it_must(pod: str) -> None:
    spec, one = pods()[pod]["spec"], container(pod)
    assert spec["securityContext"]["runAsNonRoot"] and spec["automountServiceAccountToken"] is False
    # Else a service by the name of callsheet-metrics, or flower, would set a variable that is a setting.
    assert spec["enableServiceLinks"] is False
    assert one["securityContext"] == {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True,
                                      "capabilities": {"drop": ["ALL"]}}
    assert {"cpu", "memory"} <= one["resources"]["requests"].keys() and "memory" in one["resources"]["limits"]
    if one["image"] == "callsheet":
        assert f"--uid {spec['securityContext']['runAsUser']} " in (ROOT / "Dockerfile").read_text()


def test_keys_are_in_secrets_and_only_workers_get_those_of_models() -> None:
    assert not any(re.search("KEY|PASSWORD|AUTH|TOKEN|@", name + value) for name, value in CONFIG.items())
    for secret in SECRETS:
        assert set(secret["stringData"].values()) == {""}
    flower = container("callsheet-flower")
    assert "callsheet-keys" not in str(flower) and "envFrom" not in flower
    assert {"--address=0.0.0.0", "callsheet"} <= set(flower["args"])  # not Flower's own command, which asks nobody


@pytest.mark.parametrize("kind", WORKERS)
def test_replicas_and_slots_have_bounds_that_fit(kind: str) -> None:
    most, least = autoscale(container(f"callsheet-{kind}")["args"])
    assert most >= least >= 1
    keda, hpa = the("ScaledObject", f"callsheet-{kind}", "keda-prometheus"), the("HorizontalPodAutoscaler",
                                                                                   f"callsheet-{kind}", "hpa")
    assert keda["spec"]["maxReplicaCount"] == hpa["spec"]["maxReplicas"] >= keda["spec"]["minReplicaCount"] >= 1
    assert hpa["spec"]["minReplicas"] == keda["spec"]["minReplicaCount"]
    assert "replicas" not in the("Deployment", f"callsheet-{kind}")["spec"]  # each apply would undo the scaling
    redis, *_, busy = keda["spec"]["triggers"]
    assert redis["type"] == "redis" and redis["metadata"]["listName"] == kind
    assert int(redis["metadata"]["listLength"]) <= 2 * most
    assert busy["metricType"] == "AverageValue" and int(busy["metadata"]["threshold"]) <= most
    # What the pods may use fits what they ask for: a process a core.
    assert kind == "io" or int(container("callsheet-cpu")["resources"]["requests"]["cpu"]) == most


def autoscale(args: list[str]) -> tuple[int, int]:
    [given] = [part for part in args if part.startswith("--autoscale=")]
    most, least = given.partition("=")[2].split(",")
    return int(most), int(least)


def test_no_busy_worker_is_killed() -> None:
    def unit(kind: str) -> str:
        return (ROOT / "deploy" / "systemd" / f"callsheet-{kind}.service").read_text()

    def seconds(kind: str) -> tuple[int, int]:
        timeout = re.search(r"TimeoutStopSec=(\d+)", unit(kind))
        assert timeout and "KillMode=mixed" in unit(kind)
        return int(pods()[f"callsheet-{kind}"]["spec"]["terminationGracePeriodSeconds"]), int(timeout[1])

    # An io worker ends by itself before its time is up; a cpu worker, which Celery would have sleep, has longer.
    assert container("callsheet-io")["env"] == [{"name": "REMAP_SIGTERM", "value": "SIGQUIT"}]
    assert f"Environment=REMAP_SIGTERM=SIGQUIT CALLSHEET_SOFT_SHUTDOWN={SOFT_SHUTDOWN:.0f}\n" in unit("io")
    assert min(seconds("io")) >= SOFT_SHUTDOWN + 20
    assert "env" not in container("callsheet-cpu") and "REMAP" not in unit("cpu")
    assert min(seconds("cpu")) >= 2 * SOFT_SHUTDOWN


def test_the_settings_are_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in CONFIG.items():
        monkeypatch.setenv(name, value)
        assert name.removeprefix("CALLSHEET_").lower() in Settings.model_fields
    settings = Settings.load()
    assert settings.soft_shutdown == SOFT_SHUTDOWN and settings.metrics_address == "0.0.0.0"
    for kind in WORKERS:
        [port] = container(f"callsheet-{kind}")["ports"]
        assert [port["containerPort"]] == list(settings.metrics_ports)
        assert pods()[f"callsheet-{kind}"]["metadata"]["annotations"]["prometheus.io/port"] == settings.metrics_port
    host, port = settings.redis_address.removeprefix("redis://").removesuffix("/0").split(":")
    assert the("Service", host)["spec"]["ports"][0]["port"] == int(port)


def test_redis_runs_as_in_compose() -> None:
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    assert container("callsheet-redis")["args"] == compose["redis"]["command"]
    assert container("callsheet-redis")["image"] == compose["redis"]["image"]
    for kind in WORKERS:
        assert autoscale(container(f"callsheet-{kind}")["args"]) == autoscale(compose[kind]["command"])


def queries() -> list[tuple[str, str]]:
    return [(one["metadata"]["name"].removeprefix("callsheet-"), trigger["metadata"]["query"])
            for one in rendered("keda-prometheus") if one["kind"] == "ScaledObject"
            for trigger in one["spec"]["triggers"] if trigger["type"] == "prometheus"]


def test_queries_ask_for_metrics_and_labels_that_there_are() -> None:
    assert len(queries()) == 4
    for kind, query in queries():
        for name, labels in re.findall(r"callsheet_(\w+)(?:\{([^}]*)\})?", query):
            family = FAMILIES[re.sub("_(bucket|sum|count|total)$", "", name)]
            assert {label.partition("=")[0].rstrip("~!") for label in labels.split(",") if label} <= set(family.labels)
        assert f'queue="{kind}"' in query or f'worker=~"{kind}@' in query


# They run


class Native:
    """Runs a pod's command on this machine, with the cluster's addresses put in place."""

    def __init__(self, server: RedisServer, folder: Path) -> None:
        self.server, self.folder = server, folder
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, pod: str, **more: str) -> tuple[subprocess.Popen[bytes], Path, int]:
        """The process, its log, and the port of its probes."""
        port = free_port()
        log = self.folder / f"{pod}-{port}.log"
        own = {one["name"]: one["value"] for one in container(pod).get("env", ()) if "value" in one}
        env = {**os.environ, **CONFIG, **own, "PATH": os.pathsep.join([str(BIN), os.environ["PATH"]]),
               "PYTHONPATH": str(ROOT), "CALLSHEET_REDIS_URL": self.server.url, "CALLSHEET_MODULES": "tests.agents",
               "CALLSHEET_METRICS_PORT": str(port), "CALLSHEET_METRICS_ADDRESS": "127.0.0.1", **more}
        command = [part.replace("--port=5555", f"--port={port}") for part in container(pod)["args"]]
        with log.open("wb") as out:
            process = subprocess.Popen(command, env=env, cwd=self.folder, stdout=out, stderr=out,
                                       start_new_session=True)
        self.processes.append(process)
        return process, log, port

    def stop(self) -> None:
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)


@pytest.fixture
def native(own_redis: RedisServer, tmp_path: Path) -> Iterator[Native]:
    machine = Native(own_redis, tmp_path)
    yield machine
    machine.stop()


def probed(pod: str, port: int) -> str:
    """What a pod's liveness probe is answered; "" for a failure."""
    path = container(pod)["startupProbe"]["httpGet"]["path"]
    with contextlib.suppress(OSError):
        return str(urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5).read().decode())
    return ""


@pytest.mark.parametrize(("kind", "agent"), [("io", Gated), ("cpu", CpuGated)])
def test_a_worker_of_the_manifests_works_tells_and_drains(native: Native, kind: str, agent: Any,
                                                          tmp_path: Path) -> None:
    with use_settings(Settings.load(redis_url=native.server.url)):
        job = agent(str(tmp_path)).submit(Msg("u", "x", "user"))
        trigger = the("ScaledObject", f"callsheet-{kind}", "keda")["spec"]["triggers"][0]["metadata"]
        assert native.server.client().llen(trigger["listName"]) == 1  # as KEDA will see it
        worker, log, port = native.start(f"callsheet-{kind}")
        wait_for((tmp_path / "started").exists, 60, "the call to begin", every=0.1)
        numbers = wait_for(lambda: probed(f"callsheet-{kind}", port), 20, "an answer to the probe")
        for name in re.findall(r"callsheet_\w+", " ".join(query for which, query in queries() if which == kind)):
            if not name.startswith("callsheet_time_in_queue"):  # of calls that have ended
                assert re.search(rf"^{name}[ {{]", numbers, re.M), name
        assert re.search(rf'^callsheet_worker_info\{{.*worker="{kind}@', numbers, re.M)
        assert re.search(r"^callsheet_slots_used 1", numbers, re.M)

        worker.send_signal(signal.SIGTERM)
        ending = "Soft Shutdown" if kind == "io" else "Warm shutdown"
        wait_for(lambda: ending in log.read_text(), 20, lambda: log.read_text()[-2000:])
        later = agent(str(tmp_path), "later").submit(Msg("u", "x", "user"))
        assert worker.poll() is None  # it waits for its call
        (tmp_path / "gate").touch()
        assert job.get(timeout=30)
        assert worker.wait(40) == 0 and not job.calls()[0].retries
        assert native.server.client().llen(trigger["listName"]) == 1 and later.status == "PENDING"


def test_flower_of_the_manifests_starts_with_a_password_alone(native: Native) -> None:
    bare, log, _ = native.start("callsheet-flower", CALLSHEET_FLOWER_AUTH="")
    _, _, port = native.start("callsheet-flower", CALLSHEET_FLOWER_AUTH="me:open-sesame-7")
    assert bare.wait(60) == 1 and "user:password" in log.read_text()
    wait_for(lambda: probed("callsheet-flower", port) == "OK", 60, "Flower's health check")
    with pytest.raises(urllib.request.HTTPError, match="401"):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=20)


# systemd


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.stem)
def test_a_unit_is_one(unit: Path, tmp_path: Path) -> None:
    text = unit.read_text()
    for section in ("[Unit]", "[Service]", "[Install]"):
        assert text.count(section) == 1
    command = re.search(r"^ExecStart=/opt/callsheet/.venv/bin/(\S+) (.*)$", text, re.M)
    assert command and (BIN / command[1]).exists()
    kind = unit.stem.removeprefix("callsheet-")
    assert command[2].split()[:3] == (["-A", f"callsheet.workers.{kind}", "worker"] if kind in WORKERS else ["flower"])
    if shutil.which("systemd-analyze"):
        fitted = tmp_path / unit.name  # with a program and a user that there are here
        text = text.replace("/opt/callsheet/.venv/bin", str(BIN))
        fitted.write_text(re.sub(r"(?m)^(User|Group)=.*$", r"\1=root", text))
        done = subprocess.run(["systemd-analyze", "verify", str(fitted)], capture_output=True, text=True, check=False)
        ours = [line for line in done.stderr.splitlines() if unit.name in line]
        assert not ours and done.returncode == 0, done.stderr


def test_the_units_environment_is_of_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "deploy" / "systemd" / "environment.example").read_text()
    named = re.findall(r"^#? ?CALLSHEET_(\w+)=", text, re.M)
    assert named and {name.lower().partition("__")[0] for name in named} <= Settings.model_fields.keys()
    for name, value in re.findall(r"^(\w+)=(.*)$", text, re.M):
        monkeypatch.setenv(name, value)
    assert Settings.load().modules == ("myproject.agents",)
