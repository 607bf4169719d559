"""docker-compose.yml: each of its commands and health checks works, run here without a Docker engine."""

import base64
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import tomllib
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.services import ROOT, RedisServer, free_port, wait_for

COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
PASSWORD = "open-sesame-7"
BIN = str(Path(sys.executable).parent)


class Native:
    """Runs the services' commands on this machine, with the containers' addresses put in place."""

    def __init__(self, redis: RedisServer, folder: Path) -> None:
        self.redis, self.folder, self.port = redis, folder, free_port()
        self.processes: list[subprocess.Popen[bytes]] = []

    def fit(self, part: str) -> str:
        for there, here in (("redis://redis:6379/0", self.redis.url), ("--port=5555", f"--port={self.port}"),
                            (":5555/", f":{self.port}/"), ("0.0.0.0", "127.0.0.1"), ("$$", "$")):
            part = part.replace(there, here)
        return part

    def env(self, service: str) -> dict[str, str]:
        given = {}
        for name, value in SERVICES[service].get("environment", {}).items():
            named = value.startswith("${")
            given[name] = os.environ.get(value[2:].partition(":")[0], "") if named else self.fit(value)
        path = os.pathsep.join([BIN, os.environ["PATH"]])
        return {**os.environ, **given, "PATH": path, "PYTHONPATH": os.pathsep.join([str(ROOT), given["PYTHONPATH"]]),
                "CALLSHEET_MODULES": "tests.agents", "CALLSHEET_FLOWER_AUTH": f"me:{PASSWORD}"}

    def start(self, service: str) -> subprocess.Popen[bytes]:
        command = [self.fit(part) for part in SERVICES[service]["command"]]
        with (self.folder / f"{service}.log").open("wb") as log:
            process = subprocess.Popen(command, env=self.env(service), cwd=ROOT, stdout=log, stderr=log,
                                       start_new_session=True)
        self.processes.append(process)
        return process

    def healthy(self, service: str) -> bool:
        kind, *rest = SERVICES[service]["healthcheck"]["test"]
        command = ["sh", "-c", self.fit(rest[0])] if kind == "CMD-SHELL" else [self.fit(part) for part in rest]
        command[0] = sys.executable if command[0] == "python" else command[0]
        return subprocess.run(command, env=self.env(service), cwd=ROOT, capture_output=True, check=False,
                              timeout=30).returncode == 0

    def stop(self) -> None:
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


@pytest.fixture
def native(own_redis: RedisServer, tmp_path: Path) -> Iterator[Native]:
    machine = Native(own_redis, tmp_path)
    yield machine
    machine.stop()


def test_compose_has_the_four_services_each_with_a_health_check() -> None:
    assert set(SERVICES) == {"redis", "io", "cpu", "flower"}
    assert all("healthcheck" in service for service in SERVICES.values())
    for name in ("io", "cpu", "flower"):
        assert SERVICES[name]["depends_on"] == {"redis": {"condition": "service_healthy"}}


def test_compose_publishes_nothing_beyond_loopback() -> None:
    published = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert published and all(port.startswith("127.0.0.1:") for port in published)


def test_compose_starts_no_flower_without_a_password() -> None:
    given = SERVICES["flower"]["environment"]["CALLSHEET_FLOWER_AUTH"]
    assert given.startswith("${CALLSHEET_FLOWER_AUTH:?")  # Compose refuses to start, in words
    assert all("FLOWER" not in name for service in ("io", "cpu") for name in SERVICES[service]["environment"])


def test_models_keys_are_with_workers_alone() -> None:
    keys = {name: {key for key in service.get("environment", {}) if "API_KEY" in key}
            for name, service in SERVICES.items()}
    assert keys["io"] == keys["cpu"] and "OPENAI_API_KEY" in keys["io"] and not keys["flower"] and not keys["redis"]


def test_the_images_are_of_exact_versions() -> None:
    base = re.search(r"^FROM (\S+)$", (ROOT / "Dockerfile").read_text(), re.M)
    assert base
    for image in (base[1], SERVICES["redis"]["image"]):
        assert re.search(r":\d+\.\d+\.\d+|@sha256:[0-9a-f]{64}$", image), image


def test_the_image_holds_what_the_services_run() -> None:
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    copied = [part.removeprefix("./") for line in lines if line.startswith("COPY") for part in line.split()[1:-1]]
    assert {"pyproject.toml", "README.md", "LICENSE", "callsheet"} <= set(copied)
    assert all((ROOT / part).exists() for part in copied)


@pytest.mark.parametrize(("extras", "installed"), [("", "."), ("mcp,anthropic", ".[mcp,anthropic]")])
def test_the_image_is_built_with_the_extras_that_are_named(extras: str, installed: str, tmp_path: Path) -> None:
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    run = next(line for line in lines if line.startswith("RUN pip install"))
    assert lines.index('ARG EXTRAS=""') < lines.index(run)
    for name in ("pip", "useradd"):  # in place of the image's: they say what they were told
        (tmp_path / name).write_text('#!/bin/sh\nfor word; do echo "$word"; done\n')
        (tmp_path / name).chmod(0o755)
    done = subprocess.run(["sh", "-ec", run.removeprefix("RUN ")], capture_output=True, text=True, check=True,
                          env={"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "EXTRAS": extras}, cwd=tmp_path)
    assert done.stdout.splitlines()[:3] == ["install", "--no-cache-dir", installed]
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(filter(None, extras.split(","))) <= set(known)
    for service in ("io", "cpu", "flower"):
        assert SERVICES[service]["build"] == {"context": ".", "args": {"EXTRAS": "${CALLSHEET_EXTRAS:-}"}}


def test_the_redis_command_serves_with_an_append_only_file(tmp_path: Path) -> None:
    from tests.services import redis_binary

    command, port = list(SERVICES["redis"]["command"]), free_port()
    command[0] = redis_binary() or command[0]
    process = subprocess.Popen([*command, "--port", str(port), "--dir", str(tmp_path)], stdout=subprocess.DEVNULL)
    try:
        def pong() -> bool:
            try:
                with socket.create_connection(("127.0.0.1", port), 1) as sock:
                    sock.sendall(b"PING\r\n")
                    return sock.recv(16).startswith(b"+PONG")
            except OSError:
                return False

        wait_for(pong, what="the Redis of the Compose file")
        assert SERVICES["redis"]["healthcheck"]["test"][-1] == "ping"
        wait_for(lambda: list(tmp_path.rglob("*.aof*")), what="the append-only file")
    finally:
        process.terminate()
        process.wait(10)


def test_the_workers_and_flower_of_the_compose_file_run_a_job(native: Native) -> None:
    if shutil.which("hostname") is None:
        pytest.skip("no hostname command")
    for service in ("io", "cpu", "flower"):
        native.start(service)
    for service in ("io", "cpu", "flower"):
        log = native.folder / f"{service}.log"
        wait_for(lambda service=service: native.healthy(service), 60, every=0.5,
                 what=lambda service=service, log=log: f"{service} to be healthy: {log.read_text()[-2000:]}")
    for credentials, status in (("me:wrong", 401), (f"me:{PASSWORD}", 200)):
        token = base64.b64encode(credentials.encode()).decode()
        url, headers = f"http://127.0.0.1:{native.port}/", {"Authorization": f"Basic {token}"}
        try:
            assert urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=20).status == status
        except urllib.error.HTTPError as exc:
            assert exc.code == status
    script = ("from callsheet import Msg, SequentialPipeline\nfrom tests.agents.basic import Compute, Echo\n"
              "job = SequentialPipeline([Echo('a'), Compute('c')]).submit(Msg('u', 'one two', 'user'))\n"
              "print(job.get(timeout=30).get_text_content())")
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", script], env=native.env("io"), cwd=ROOT, capture_output=True,
                          text=True, timeout=60, check=False)
    assert done.stdout.strip() == "c:2", done.stderr
    assert time.monotonic() - started < 30
