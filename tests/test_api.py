"""The public names, and what importing them does."""

import re
import subprocess
import sys
import types

import pytest

import callsheet
from callsheet import errors
from tests.services import ROOT

NAMES = [
    "AgentBase", "AgentFailed", "AgentTimeout", "AudioBlock", "Base64Source", "BranchFailed", "CallOptions",
    "CallsheetError", "ElasticGroup", "Event", "FanoutPipeline", "ImageBlock", "Job", "JobCancelled", "JobUsage",
    "Msg", "MsgHub", "Question", "ReActAgent", "ResultTimeout", "SequentialPipeline", "Settings", "TextBlock",
    "ThinkingBlock", "ToolResponse", "ToolResultBlock", "ToolUseBlock", "Toolkit", "URLSource", "Usage", "UserAgent",
    "VideoBlock", "errors", "fanout_pipeline", "get_settings", "hub", "inline", "map", "sequential_pipeline",
    "stream_printing_messages", "usage",
]


def test_the_public_names_are_these() -> None:
    assert sorted(callsheet.__all__) == sorted(NAMES)
    assert list(callsheet.__all__) == sorted(callsheet.__all__)
    for name in NAMES:
        assert getattr(callsheet, name) is not None


def test_what_the_documents_import_in_place_of_agentscopes_is_there() -> None:
    text = (ROOT / "docs" / "agents.md").read_text().partition("## Coming from AgentScope")[2]
    block = text.partition("```python\n")[2].partition("```")[0]
    assert block.count("import") >= 11
    exec(block, {})


def test_star_import_gives_them() -> None:
    found: dict[str, object] = {}
    exec("from callsheet import *", found)
    assert set(NAMES) <= set(found)


@pytest.mark.parametrize("name", NAMES)
def test_every_public_name_says_what_it_is(name: str) -> None:
    found = getattr(callsheet, name)
    assert isinstance(found, types.ModuleType) or (found.__doc__ or "").strip()


def test_the_version_is_a_version() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", callsheet.__version__)


def test_every_error_has_a_public_place() -> None:
    for name in ("AgentFailed", "AgentTimeout", "BranchFailed", "JobCancelled", "ResultTimeout", "CallsheetError"):
        assert getattr(callsheet, name) is getattr(errors, name)


IMPORT = """
import sys, os, socket, threading
import celery, kombu, pydantic_settings, rich.console, rich.progress, redis, redis.asyncio, greenlet
import celery.backends.redis, kombu.transport.redis  # what they read and open is theirs
try:
    import httpx, aiohttp, uvloop
except ImportError:
    pass
seen = []

def audit(event, args):
    if event in ("socket.connect", "socket.bind", "socket.getaddrinfo", "subprocess.Popen"):
        seen.append(f"{event} {args[1:]}")
    if event == "open" and str(args[0]).endswith((".env", ".toml")):
        seen.append(f"open {args[0]}")

class Watched(type(os.environ)):
    def __getitem__(self, key):
        caller = sys._getframe(1)
        while caller.f_globals.get("__name__") in ("os", "_collections_abc"):
            caller = caller.f_back
        if caller.f_globals.get("__name__", "").startswith("callsheet") or key.startswith(("CALLSHEET", "OPENAI")):
            seen.append(f"environ {key}")
        return super().__getitem__(key)

    def __iter__(self):
        seen.append("environ read whole")
        return super().__iter__()

sys.addaudithook(audit)
os.environ.__class__ = Watched
threads = threading.active_count()
import callsheet
import callsheet.agents, callsheet.messages, callsheet.settings, callsheet.tasks.app, callsheet.tasks.inline
assert threading.active_count() == threads, threading.enumerate()
os.environ.__class__ = Watched.__mro__[1]
print("\\n".join(seen))
"""


def test_importing_reads_no_environment_and_opens_no_socket() -> None:
    done = subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""


def test_agents_can_be_made_without_settings_or_redis() -> None:
    code = ("import os; os.environ['CALLSHEET_REDIS_URL'] = 'nonsense'\n"
            "from tests.travellers import Holder; from callsheet import Msg, SequentialPipeline, Job\n"
            "SequentialPipeline([Holder('a')]); Msg('a', 'b', 'user')\n"
            "from callsheet.errors import SettingsError\n"
            "try: Holder('a').submit(Msg('a', 'b', 'user'))\n"
            "except SettingsError as exc: print('refused' if 'CALLSHEET_REDIS_URL' in str(exc) else exc)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "refused\n", done.stderr
