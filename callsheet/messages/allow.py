"""Which classes and functions a message may name, and finding them."""

import importlib
import sys
from dataclasses import dataclass
from typing import Any

from callsheet.errors import CannotTravel, ModuleNotAllowed

#: The classes of Callsheet's own that a message may name; of its functions it may name none. By exact names: what is
#: added to the package is closed until it is listed here.
OWN_CLASSES = frozenset({
    "callsheet.agents.base:AgentBase",
    "callsheet.agents.react:ReActAgent",
    "callsheet.agents.terminal:TerminalUserInput",
    "callsheet.agents.user:UserAgent",
    "callsheet.formatters.anthropic:AnthropicChatFormatter",
    "callsheet.formatters.anthropic:AnthropicMultiAgentFormatter",
    "callsheet.formatters.dashscope:DashScopeChatFormatter",
    "callsheet.formatters.dashscope:DashScopeMultiAgentFormatter",
    "callsheet.formatters.gemini:GeminiChatFormatter",
    "callsheet.formatters.gemini:GeminiMultiAgentFormatter",
    "callsheet.formatters.ollama:OllamaChatFormatter",
    "callsheet.formatters.ollama:OllamaMultiAgentFormatter",
    "callsheet.formatters.openai:DeepSeekChatFormatter",
    "callsheet.formatters.openai:DeepSeekMultiAgentFormatter",
    "callsheet.formatters.openai:OpenAIChatFormatter",
    "callsheet.formatters.openai:OpenAIMultiAgentFormatter",
    "callsheet.formatters.base:CharTokenCounter",
    "callsheet.hub.elastic:ElasticGroup",
    "callsheet.hub.elastic_state:Shift",
    "callsheet.hub.broadcast:Teller",
    "callsheet.mcp.clients:HttpStatefulClient",
    "callsheet.mcp.clients:HttpStatelessClient",
    "callsheet.mcp.clients:StdIOStatefulClient",
    "callsheet.memory.compaction:Budget",
    "callsheet.memory.compaction:KeepLast",
    "callsheet.memory.compaction:Summarize",
    "callsheet.memory.inmemory:InMemoryMemory",
    "callsheet.memory.redis:RedisMemory",
    "callsheet.messages.msg:Msg",
    "callsheet.models.anthropic:AnthropicChatModel",
    "callsheet.models.compatible:DashScopeChatModel",
    "callsheet.models.compatible:DeepSeekChatModel",
    "callsheet.models.fallback:FallbackModel",
    "callsheet.models.gemini:GeminiChatModel",
    "callsheet.models.ollama:OllamaChatModel",
    "callsheet.models.openai:OpenAIChatModel",
    "callsheet.tasks.pipelines:FanoutPipeline",
    "callsheet.tasks.pipelines:SequentialPipeline",
    "callsheet.tasks.toolcalls:ToolCall",
    "callsheet.testing.scripted:ScriptedModel",
    "callsheet.tools.toolkit:Toolkit",
})
_MOST_RESOLVED = 4096
_resolved: dict[tuple[tuple[str, ...], str, str], Any] = {}
_REMEDY = "Name its module in CALLSHEET_MODULES where the workers start (comma-separated dotted names)."


@dataclass(frozen=True)
class AllowList:
    """The modules, with what is under them, that may be imported for a message.

    Attributes:
        modules: dotted names, from the settings.
    """

    modules: tuple[str, ...]

    def admits(self, module: str) -> bool:
        """Whether `module` is one of the allowed ones, or a module without a leading underscore under one."""
        return any(module == name or (module.startswith(name + ".")
                                      and all(map(_is_public, module[len(name) + 1:].split("."))))
                   for name in self.modules)

    def check(self, ref: str, what: str) -> None:
        """Refuse `ref` ("module:name") if a message may not name it.

        Of Callsheet itself it may name OWN_CLASSES; of the allowed modules what stands at their top level under a name
        without a leading underscore.

        Raises:
            ModuleNotAllowed: names it and the remedy.
        """
        module = ref.partition(":")[0]
        if module.partition(".")[0] == "callsheet":
            if what != "class" or ref not in OWN_CLASSES:
                raise ModuleNotAllowed(f"{ref} is a {what} of Callsheet's own that is not made to travel. Give what it "
                                       "is made from, and create it in the agent.")
        elif not self.admits(module):
            allowed = ", ".join(self.modules) or "empty"
            raise ModuleNotAllowed(f"The {what} {ref} is outside the allowed modules ({allowed}). {_REMEDY}")
        check_name(ref, what)

    def resolve(self, ref: str, what: str) -> Any:
        """The class or function that `ref` names.

        Only what the module itself defines is found: a name that it merely imported is refused, so that an
        allowed module does not open what it uses.

        Raises:
            ModuleNotAllowed: its module is not allowed, or does not define it.
            CannotTravel: its module cannot be imported here.
        """
        if not isinstance(ref, str):
            raise CannotTravel(f"{ref!r} does not name a {what}. Do the workers run another version of Callsheet?")
        known = _resolved.get((self.modules, ref, what))
        if known is None or not _is_still(known, ref):
            known = self._resolve(ref, what)
            if len(_resolved) < _MOST_RESOLVED:
                _resolved[self.modules, ref, what] = known
        return known

    def _resolve(self, ref: str, what: str) -> Any:
        self.check(ref, what)
        module, _, name = ref.partition(":")
        try:
            namespace = vars(importlib.import_module(module))
        except Exception as exc:
            raise CannotTravel(
                f"The module {module!r} of the {what} {ref} cannot be imported here: {type(exc).__name__}: {exc}. "
                "Install it for the workers, or put its folder on their PYTHONPATH.") from exc
        if name not in namespace:
            raise CannotTravel(f"The {what} {ref} does not exist here. Do the workers run an older version?")
        found = namespace[name]
        if getattr(found, "__module__", None) != module or getattr(found, "__qualname__", None) != name:
            raise ModuleNotAllowed(f"{ref} is not defined in {module}: only what an allowed module defines may "
                                   "be named. Name it by the module that defines it.")
        return found


def _is_public(name: str) -> bool:
    return name.isidentifier() and not name.startswith("_")


def check_name(ref: str, what: str) -> None:
    """Refuse `ref` ("module:name") where its name is not one of a module's top level, or has a leading underscore.

    Raises:
        ModuleNotAllowed: names it and the remedy.
    """
    if not _is_public(ref.partition(":")[2]):
        raise ModuleNotAllowed(f"A message may name a {what} only at the top level of its module and without a leading "
                               f"underscore, unlike {ref}. Move it there, or rename it.")


def _is_still(found: Any, ref: str) -> bool:
    """Whether `ref` names what it did when it was found: its module may have been loaded again since."""
    module, _, name = ref.partition(":")
    loaded = sys.modules.get(module)
    return loaded is not None and vars(loaded).get(name) is found


def reference(target: Any, what: str) -> str:
    """`target` (a class or a function) as "module:qualified.name".

    Raises:
        CannotTravel: it has no name that another process could import.
    """
    module, qualname = getattr(target, "__module__", None), getattr(target, "__qualname__", None)
    if not module or not qualname:
        raise CannotTravel(f"the {what} {target!r} has no name to import it by. Define it with def or class.")
    if qualname.endswith("<lambda>"):
        raise CannotTravel("it is a lambda, which has no name to import it by. Write it as a def at the top level "
                           "of a module.")
    if "<locals>" in qualname:
        raise CannotTravel(f"the {what} {qualname} is defined inside a function, where no worker can import it. "
                           "Define it at the top level of a module.")
    if module == "__main__":
        raise CannotTravel(f"the {what} {qualname} is defined in the program's main file, which workers cannot "
                           "import. Move it to a module named in CALLSHEET_MODULES, or run the file with "
                           "`callsheet run FILE.py`.")
    ref = f"{module}:{qualname}"
    check_name(ref, what)
    if vars(sys.modules.get(module, object)).get(qualname) is not target:
        raise CannotTravel(f"the {what} {qualname} is not what the module {module} has under that name, so a worker "
                           "would get another. Give it a name of its own at the top level of its module.")
    return ref
