"""Multi-agent LLM applications on Celery."""

from callsheet import errors, hub
from callsheet.agents import AgentBase, CallOptions, ReActAgent, UserAgent
from callsheet.errors import AgentFailed, AgentTimeout, BranchFailed, CallsheetError, JobCancelled, ResultTimeout
from callsheet.hub import ElasticGroup, MsgHub
from callsheet.messages import (
    AudioBlock,
    Base64Source,
    ImageBlock,
    Msg,
    TextBlock,
    ThinkingBlock,
    ToolResultBlock,
    ToolUseBlock,
    URLSource,
    VideoBlock,
)
from callsheet.resources.accounts import JobUsage, Usage
from callsheet.resources.books import usage
from callsheet.settings import Settings, get_settings
from callsheet.tasks.batches import map
from callsheet.tasks.dispatch import RemoteDispatcher as _RemoteDispatcher  # noqa: F401 - provides the dispatcher
from callsheet.tasks.events import Event
from callsheet.tasks.inline import inline
from callsheet.tasks.jobs import Job
from callsheet.tasks.people.store import Question
from callsheet.tasks.pipelines import (
    FanoutPipeline,
    SequentialPipeline,
    fanout_pipeline,
    sequential_pipeline,
    stream_printing_messages,
)
from callsheet.tasks.toolcalls import ToolCall as _ToolCall  # noqa: F401 - provides the queues of tools
from callsheet.tasks.turns.sessions import Shared as _Shared  # noqa: F401 - keeps what RedisMemory holds
from callsheet.tools import Toolkit, ToolResponse

__version__ = "0.1.0"

__all__ = [
    "AgentBase",
    "AgentFailed",
    "AgentTimeout",
    "AudioBlock",
    "Base64Source",
    "BranchFailed",
    "CallOptions",
    "CallsheetError",
    "ElasticGroup",
    "Event",
    "FanoutPipeline",
    "ImageBlock",
    "Job",
    "JobCancelled",
    "JobUsage",
    "Msg",
    "MsgHub",
    "Question",
    "ReActAgent",
    "ResultTimeout",
    "SequentialPipeline",
    "Settings",
    "TextBlock",
    "ThinkingBlock",
    "ToolResponse",
    "ToolResultBlock",
    "ToolUseBlock",
    "Toolkit",
    "URLSource",
    "Usage",
    "UserAgent",
    "VideoBlock",
    "errors",
    "fanout_pipeline",
    "get_settings",
    "hub",
    "inline",
    "map",
    "sequential_pipeline",
    "stream_printing_messages",
    "usage",
]
