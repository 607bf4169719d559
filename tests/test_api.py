"""The public names, and what importing them does."""

import inspect
import re
import subprocess
import sys
import types
from typing import Any

import pytest

import callsheet
from callsheet import errors, formatters, models
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


CALL = "(messages, tools=None, tool_choice=None, structured_model=None, **kwargs)"
MODELS = {
    "OpenAIChatModel": "(model_name, api_key=None, stream=True, reasoning_effort=None, organization=None, "
                       "stream_tool_parsing=True, client_type='openai', client_kwargs=None, generate_kwargs=None, **)",
    "DashScopeChatModel": "(model_name, api_key, stream=True, enable_thinking=None, multimodality=None, "
                          "generate_kwargs=None, base_http_api_url=None, stream_tool_parsing=True, **)",
    "OllamaChatModel": "(model_name, stream=False, options=None, keep_alive='5m', enable_thinking=None, host=None, "
                       "client_kwargs=None, generate_kwargs=None, **)",
    "AnthropicChatModel": "(model_name, api_key=None, max_tokens=2048, stream=True, thinking=None, "
                          "stream_tool_parsing=True, client_kwargs=None, generate_kwargs=None, **)",
    "GeminiChatModel": "(model_name, api_key, stream=True, thinking_config=None, client_kwargs=None, "
                       "generate_kwargs=None, **)",
}
"""What AgentScope 1.0.21's models are made with; `**` takes old names there, and anything else unheeded."""

CALLS = dict.fromkeys(MODELS, CALL) | {
    "AnthropicChatModel": CALL.replace("**kwargs", "**generate_kwargs"),
    "GeminiChatModel": CALL.replace("**kwargs", "**config_kwargs"),
}

COUNTED = "token_counter=None, max_tokens=None"
PROMOTED = "promote_tool_result_images=False"
ALL_PROMOTED = f"{PROMOTED}, promote_tool_result_audios=False, promote_tool_result_videos=False"
PROMPT = "conversation_history_prompt=<text>"
FORMATTERS = {
    "OpenAIChatFormatter": f"({PROMOTED}, {COUNTED})",
    "OpenAIMultiAgentFormatter": f"({PROMPT}, {PROMOTED}, {COUNTED})",
    "DashScopeChatFormatter": f"({ALL_PROMOTED}, {COUNTED})",
    "DashScopeMultiAgentFormatter": f"({PROMPT}, {ALL_PROMOTED}, {COUNTED})",
    "OllamaChatFormatter": f"({PROMOTED}, {COUNTED})",
    "OllamaMultiAgentFormatter": f"({PROMPT}, {PROMOTED}, {COUNTED})",
    "DeepSeekChatFormatter": f"({COUNTED})",
    "DeepSeekMultiAgentFormatter": f"({PROMPT}, {COUNTED})",
    "AnthropicChatFormatter": f"({COUNTED})",
    "AnthropicMultiAgentFormatter": f"({PROMPT}, {COUNTED})",
    "GeminiChatFormatter": f"({PROMOTED}, {COUNTED})",
    "GeminiMultiAgentFormatter": f"({PROMPT}, {PROMOTED}, {COUNTED})",
}
"""Of its formatters; the prompts' words are each project's own."""

OWN = {
    "OpenAIChatModel": {"endpoint": None, "client_args": None},  # client_args: AgentScope's name before 1.0.9
    "DashScopeChatModel": {"endpoint": "dashscope"},
    "OllamaChatModel": {"api_key": None, "endpoint": "ollama"},
    "AnthropicChatModel": {"endpoint": "anthropic", "client_args": None},
    "GeminiChatModel": {"endpoint": "gemini", "client_args": None},
}
"""What ours take beside: by keyword only, and never needed."""

DIFFERENT = [("api_key, ", "api_key=None, "),  # keys belong to endpoints: none need be given
             (", **)", ")")]  # a parameter that nothing heeds is refused


def _shown(function: Any, *, own: dict[str, Any] | None = None) -> str:
    """The parameters that have a place, as a table has them; those by keyword only have to be `own`."""
    parts, found = [], {}
    for one in list(inspect.signature(function).parameters.values())[1:]:
        if one.kind is one.KEYWORD_ONLY:
            found[one.name] = one.default
        elif one.kind is one.VAR_KEYWORD:
            parts.append(f"**{one.name}")
        elif one.default is one.empty:
            parts.append(one.name)
        else:
            parts.append(f"{one.name}={'<text>' if one.name.endswith('_prompt') else repr(one.default)}")
    assert found == (own or {})
    return f"({', '.join(parts)})"


@pytest.mark.parametrize("name", MODELS)
def test_models_have_agentscopes_parameters_in_its_order(name: str) -> None:
    cls, expected = getattr(models, name), MODELS[name]
    for theirs, ours in DIFFERENT:
        expected = expected.replace(theirs, ours)
    assert _shown(cls.__init__, own=OWN[name]) == expected
    assert _shown(cls.__call__) == CALLS[name]
    with pytest.raises(TypeError, match="unheeded"):
        cls("m", unheeded=1)


@pytest.mark.parametrize("name", FORMATTERS)
def test_formatters_have_agentscopes_parameters_in_its_order(name: str) -> None:
    cls = getattr(formatters, name)
    assert _shown(cls.__init__) == FORMATTERS[name]
    assert _shown(cls.format) == "(msgs, **kwargs)"


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
