"""Every error that Callsheet raises.

CallsheetError
├── SettingsError               a setting is wrong or missing (also ValueError)
│   └── MissingKey              an endpoint's key cannot be read
├── RedisUnavailable            no Redis answers at the address, or it takes no writes (also ConnectionError)
│   └── LimiterUnavailable      the limits of an endpoint cannot be kept without it
├── MessageError                something is not a valid Msg (also ValueError)
├── CannotTravel                a value cannot be written to the wire (also TypeError)
│   ├── ModuleNotAllowed        a class or function outside the allowed modules
│   └── PayloadTooLarge         a message over the size limit
├── UnknownQueue                a queue that the settings do not name (also ValueError)
├── PayloadExpired              a large payload is no longer stored
├── BadReply                    an agent's reply is not a Msg, a list of them or None (also TypeError)
├── StateError                  an agent's state cannot be kept or read
│   ├── StateMissing            a part of it, or all, is not there (also KeyError)
│   ├── StateMismatch           it is of another class, or of a newer version (also ValueError)
│   ├── StateBusy               somebody else has the agent's turn (also TimeoutError)
│   └── TurnLost                a worker lost an agent's turn while its reply ran
├── HubError                    a hub cannot be used so
│   ├── HubMissing              no hub of this name is open (also LookupError)
│   ├── HubMismatch             a hub of this name is open with other settings (also ValueError)
│   └── ObserveFailed           members raised when they were told a message; the others have it
├── ModelError                  a chat model's endpoint refused or broke off a call
│   ├── CircuitOpen             an endpoint that fails is left alone for a while
│   └── RateLimited             a call would wait longer for its turn at an endpoint than it has
├── ToolError                   a toolkit is used in a way that cannot be right (also ValueError)
├── ToolFailed                  a tool failed, with a text for the model
├── McpError                    an MCP server refused a request, or its answer is none
│   ├── McpUnavailable          it cannot be reached, or was lost in the middle of a call (also ConnectionError)
│   ├── McpTimeout              it did not answer in time (also TimeoutError)
│   └── McpMisused              a client was connected twice, or used after it was closed (also RuntimeError)
├── JobError                    something about one job
│   ├── ResultTimeout           no result within the time given (also TimeoutError)
│   ├── JobCancelled            the job was cancelled or revoked
│   ├── JobExpired              the job's `expires` passed before a worker took it
│   ├── JobLost                 Redis lost its data, and the job with them
│   ├── AnswerRefused           an answer that no question waits for, or that does not fit it (also ValueError)
│   ├── CallRefused             a worker refused the message: too large, or not Celery's
│   ├── UnknownJob              nothing is known of a job: it never was, or has expired (also KeyError)
│   └── AgentFailed             the agent raised, on a worker or inline
│       ├── AgentTimeout        the call was ended by its `timeout` (also TimeoutError)
│       ├── PoisonedCall        processes died under the call time and again, and it was given up
│       └── BranchFailed        a branch of a FanoutPipeline failed
└── UsageError                  a call that cannot be right (also TypeError)

Each message says what was wrong, where, and the remedy. Each class survives pickle and JSON: an instance is
its positional arguments, and nothing else.
"""

import re
from collections.abc import Callable
from typing import Any

_clean: list[Callable[[str], str]] = []


def provide_cleaning(clean: Callable[[str], str]) -> None:
    """Have `clean` take secrets out of the texts of all errors made from now on; called by who knows the settings."""
    _clean[:] = [clean]


def _cleaned(value: Any) -> Any:
    if isinstance(value, str):
        return _clean[0](value) if _clean else value
    return {key: _cleaned(item) for key, item in value.items()} if isinstance(value, dict) else value


class CallsheetError(Exception):
    """Base of all errors of Callsheet. Their texts hold no secret of the settings."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*map(_cleaned, args))

    @property
    def message(self) -> str:
        """The text for people."""
        return str(self.args[0]) if self.args else ""

    def __str__(self) -> str:
        return self.message  # KeyError would quote it, OSError tell numbers

    def to_dict(self) -> dict[str, Any]:
        """The error as JSON data: class name and arguments."""
        return {"error": type(self).__name__, "args": list(self.args)}

    @staticmethod
    def from_dict(data: dict[str, Any]) -> "CallsheetError":
        """The error that `to_dict` wrote; what is not known here gives a plain CallsheetError."""
        cls = _classes().get(str(data.get("error")), CallsheetError)
        args = data.get("args")
        args = args if isinstance(args, list) else []
        try:
            return cls(*args)
        except TypeError:  # a newer version's arguments
            return CallsheetError(*args)


class SettingsError(CallsheetError, ValueError):
    """A setting is wrong or missing."""


class MissingKey(SettingsError):
    """An endpoint's key cannot be read from where the settings say it is."""


class RedisUnavailable(CallsheetError, ConnectionError):
    """No Redis answers at the address in the settings, or it refuses to work: out of memory, read-only and so on."""


class LimiterUnavailable(RedisUnavailable):
    """An endpoint has limits, and the Redis that keeps them for all workers does not answer."""


class MessageError(CallsheetError, ValueError):
    """Something given as a message is not a valid Msg."""


class CannotTravel(CallsheetError, TypeError):
    """A value cannot be written to the wire."""


class ModuleNotAllowed(CannotTravel):
    """A class or function lives outside the modules that the settings allow."""


class PayloadTooLarge(CannotTravel):
    """A message is over the size limit."""


class UnknownQueue(CallsheetError, ValueError):
    """A queue that the settings do not name."""


class PayloadExpired(CallsheetError):
    """A large payload that a message refers to is no longer stored."""


class BadReply(CallsheetError, TypeError):
    """An agent's reply is not a Msg, a list of them or None."""


class StateError(CallsheetError):
    """An agent's state cannot be kept or read."""


class StateMissing(StateError, KeyError):
    """A part of a state, or all of it, is not there."""


class StateMismatch(StateError, ValueError):
    """Stored state is of another class, or was written by a newer version."""


class StateBusy(StateError, TimeoutError):
    """An agent's replies left no turn to somebody else who waited for one."""


class TurnLost(StateError):
    """A worker lost an agent's turn while the reply ran; what the reply changed is not kept."""


class HubError(CallsheetError):
    """A hub cannot be used so."""


class HubMissing(HubError, LookupError):
    """No hub of this name is open."""


class HubMismatch(HubError, ValueError):
    """A hub of this name is open with other settings."""


class ObserveFailed(HubError):
    """Members raised when they were told a message; the others have it.

    Args:
        message: what happened, for people.
        members: of those that raised, by agent id: the error's class and text.
    """

    def __init__(self, message: str = "", members: dict[str, str] | None = None, *more: Any) -> None:
        super().__init__(message, members or {}, *more)
        self.members = dict(self.args[1]) if isinstance(members, dict) else {}


class ModelError(CallsheetError):
    """A chat model's endpoint refused or broke off a call."""


class CircuitOpen(ModelError):
    """An endpoint that fails is left alone for a while.

    Args:
        message: what happened, for people.
        endpoint: its name in the settings.
        retry_after: seconds until it is probed; 0 while that is under way.
    """

    def __init__(self, message: str = "", endpoint: str = "", retry_after: float = 0.0, *more: Any) -> None:
        super().__init__(message, endpoint, retry_after, *more)
        self.endpoint = endpoint
        self.retry_after = retry_after


class ToolError(CallsheetError, ValueError):
    """A toolkit is used in a way that cannot be right: a name taken twice, a group that is not there."""


class ToolFailed(CallsheetError):
    """A tool failed; the model gets the error's text as it is. For tools to raise."""


class McpError(CallsheetError):
    """An MCP server refused a request, or what it answered is no answer."""


class McpUnavailable(McpError, ConnectionError):
    """An MCP server cannot be reached, or was lost in the middle of a call."""


class McpTimeout(McpError, TimeoutError):
    """An MCP server did not answer in time."""


class McpMisused(McpError, RuntimeError):
    """An MCP client was connected twice, closed unconnected, or used after it was closed."""


class RateLimited(ModelError):
    """A call would have to wait longer for its turn at an endpoint than it has.

    Args:
        message: what happened and the remedy, for people.
        endpoint: its name in the settings.
        limit: which one: "rpm", "tpm", "max_concurrency" or "pause", which the endpoint asked for.
        retry_after: seconds after which it may go, as far as can be told, or None.
    """

    def __init__(self, message: str = "", endpoint: str = "", limit: str = "",
                 retry_after: float | None = None, *more: Any) -> None:
        super().__init__(message, endpoint, limit, retry_after, *more)
        self.endpoint = endpoint
        self.limit = limit
        self.retry_after = retry_after


class UsageError(CallsheetError, TypeError):
    """A call that cannot be right."""


class JobError(CallsheetError):
    """Something about one job."""


class ResultTimeout(JobError, TimeoutError):
    """No result came within the time given; the job itself goes on."""


class JobCancelled(JobError):
    """The job was cancelled or revoked."""


class JobExpired(JobError):
    """The job's `expires` passed before a worker took it."""


class JobLost(JobError):
    """Redis lost its data, and with them the job: no worker has it any more, and it will not end."""


class AnswerRefused(JobError, ValueError):
    """The job waits for no answer, has had it already, or needs data of another form."""


class CallRefused(JobError):
    """A worker refused the call's message: it is too large, or not as Celery writes it."""


class UnknownJob(JobError, KeyError):
    """Nothing is known of a job: there never was one, or its records have expired."""


class AgentFailed(JobError):
    """The agent raised, on a worker or inline.

    Args:
        message: what happened, for people.
        remote_type: qualified name of the class raised there, e.g. `"builtins.ValueError"`.
        remote_message: its text.
        remote_traceback: its traceback as text, or "".
        agent: the agent as `Class(name)`, or "".
        job_id: the job that failed, or "".
    """

    remote_type: str
    remote_message: str
    remote_traceback: str

    def __init__(self, message: str = "", remote_type: str = "", remote_message: str = "",
                 remote_traceback: str = "", agent: str = "", job_id: str = "", *more: Any) -> None:
        super().__init__(message, remote_type, remote_message, remote_traceback, agent, job_id, *more)
        _, self.remote_type, self.remote_message, self.remote_traceback = self.args[:4]
        self.agent = agent
        self.job_id = job_id

    def __str__(self) -> str:
        """The message, and the traceback from where the agent's own code begins."""
        trace = f"\n\nRemote traceback:\n{_from_the_agent(self.remote_traceback)}" if self.remote_traceback else ""
        return f"{self.message}{trace}"


class AgentTimeout(AgentFailed, TimeoutError):
    """The call was ended by its `timeout`."""


class PoisonedCall(AgentFailed):
    """Processes died under the call time and again, and it was given up; the dead letters have what it was given."""


class BranchFailed(AgentFailed):
    """A branch of a FanoutPipeline failed; the others finished.

    Args:
        branch: the failing branch, e.g. `"branch 1 (Summarizer(b))"`; the other arguments as in AgentFailed.
    """

    def __init__(self, message: str = "", remote_type: str = "", remote_message: str = "",
                 remote_traceback: str = "", agent: str = "", job_id: str = "", branch: str = "") -> None:
        super().__init__(message, remote_type, remote_message, remote_traceback, agent, job_id, branch)
        self.branch = branch


_PLUMBING = re.compile(
    r'(?<=Traceback \(most recent call last\):\n)'
    r'(?:  File "[^"\n]*[/\\](?:celery[/\\]app[/\\]trace|asyncio[/\\]threads|concurrent[/\\]futures[/\\]thread|'
    r'callsheet[/\\](?:tasks|messages|agents[/\\](?:running|hooks)))[\w/\\]*\.py", '
    r'line .*\n(?:    .*\n)*)+(?=  File ")')
"""The frames that lead to an agent's code, or to the one that raised where there is none of it."""


def _from_the_agent(trace: str) -> str:
    def note(found: re.Match[str]) -> str:
        count = found[0].count('  File "')
        return (f"  ... {count} frames of Celery's and Callsheet's are left out; `remote_traceback` has them\n"
                if count > 1 else found[0])

    return _PLUMBING.sub(note, trace)


def _classes() -> dict[str, type[CallsheetError]]:
    found: dict[str, type[CallsheetError]] = {}
    left: list[type[CallsheetError]] = [CallsheetError]
    while left:
        cls = left.pop()
        found[cls.__name__] = cls
        left.extend(cls.__subclasses__())
    return found
