"""Hooks around an agent's methods: registries, and the wrapper that runs them.

As in AgentScope: a pre hook gets the agent and a copy of the arguments by name, and may return changed ones; a post
hook gets the result as well, and may return another. Hooks of the instance run before those of its class. A hook of a
class holds for its instances and those of its subclasses, and for no other class.
"""

import asyncio
import functools
import inspect
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from copy import deepcopy
from typing import Any

from callsheet.errors import UsageError
from callsheet.resources.loops import running_loop

Hook = Callable[..., Any]
Registry = dict[str, dict[str, Hook]]
_WRAPPED = "__callsheet_hooked__"
_on_classes: set[type] = set()  # classes that were given hooks
_running: ContextVar[frozenset[tuple[int, str]]] = ContextVar("callsheet_hooks_running", default=frozenset())


class Hooked:
    """A class whose `hookable` methods run hooks registered by name."""

    hookable: tuple[str, ...] = ()
    _class_hooks: Registry
    _instance_hooks: Registry
    #: The caller's class hooks, where a call was sent with some; they hold in place of this process's own.
    _sent_class_hooks: Registry | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls._class_hooks = {}
        for name in cls.hookable:
            method = getattr(cls, name, None)  # its own, or that of a mixin, which is not wrapped yet
            if inspect.isfunction(method) and not hasattr(method, _WRAPPED):
                setattr(cls, name, with_hooks(name, method))

    @classmethod
    def hook_types(cls) -> list[str]:
        """The names that `hook_type` may have."""
        return [f"{side}_{name.lstrip('_')}" for name in cls.hookable for side in ("pre", "post")]

    @property
    def supported_hook_types(self) -> list[str]:
        """The names that `hook_type` may have."""
        return self.hook_types()

    def register_instance_hook(self, hook_type: str, hook_name: str, hook: Hook) -> None:
        """Add a hook to this agent, in place of one of the same name.

        Raises:
            UsageError: there is no such hook type.
        """
        _put(self._instance_hooks, self, hook_type, hook_name, hook)

    def remove_instance_hook(self, hook_type: str, hook_name: str) -> None:
        """Take a hook of this agent away; ValueError if there is none of that name."""
        _take(self._instance_hooks, self, hook_type, hook_name)

    def clear_instance_hooks(self, hook_type: str | None = None) -> None:
        """Take all hooks of this agent away, or those of one type."""
        _clear(self._instance_hooks, self, hook_type)

    @classmethod
    def register_class_hook(cls, hook_type: str, hook_name: str, hook: Hook) -> None:
        """Add a hook to this class and its subclasses, in place of one of the same name.

        Raises:
            UsageError: there is no such hook type.
        """
        _put(cls._class_hooks, cls, hook_type, hook_name, hook)
        _on_classes.add(cls)

    @classmethod
    def remove_class_hook(cls, hook_type: str, hook_name: str) -> None:
        """Take a hook of this class away; ValueError if there is none of that name."""
        _take(cls._class_hooks, cls, hook_type, hook_name)

    @classmethod
    def clear_class_hooks(cls, hook_type: str | None = None) -> None:
        """Take all hooks of this class away, or those of one type."""
        _clear(cls._class_hooks, cls, hook_type)

    def class_hooks(self) -> Registry:
        """The class hooks that hold for this agent: its class's, then those of its bases."""
        if self._sent_class_hooks is not None:
            return self._sent_class_hooks
        found: Registry = {}
        for cls in type(self).__mro__ if _on_classes else ():  # each call asks
            for kind, hooks in cls.__dict__.get("_class_hooks", {}).items():
                for name, hook in hooks.items():
                    found.setdefault(kind, {}).setdefault(name, hook)
        return found

    def hooks_for(self, hook_type: str) -> list[Hook]:
        """The hooks of a type in the order in which they run."""
        own, of_class = self._instance_hooks.get(hook_type, {}), self.class_hooks().get(hook_type, {})
        return [*own.values(), *of_class.values()]


def _checked(owner: Any, hook_type: str) -> None:
    known = owner.hook_types()
    if hook_type not in known:
        raise UsageError(f"{hook_type!r} is not a hook type; there are {', '.join(known)}.")


def _put(registry: Registry, owner: Any, hook_type: str, hook_name: str, hook: Hook) -> None:
    _checked(owner, hook_type)
    registry.setdefault(hook_type, {})[hook_name] = hook


def _take(registry: Registry, owner: Any, hook_type: str, hook_name: str) -> None:
    _checked(owner, hook_type)
    if registry.get(hook_type, {}).pop(hook_name, None) is None:
        raise ValueError(f"There is no {hook_type} hook named {hook_name!r} here.")


def _clear(registry: Registry, owner: Any, hook_type: str | None) -> None:
    if hook_type is None:
        registry.clear()
    else:
        _checked(owner, hook_type)
        registry.pop(hook_type, None)


def with_hooks(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
    """`method`, running the hooks of its agent before and after; async if it is async."""
    kind = name.lstrip("_")
    signature = inspect.signature(method)

    @functools.wraps(method)
    async def hooked(self: Hooked, *args: Any, **kwargs: Any) -> Any:
        pre, post = self.hooks_for(f"pre_{kind}"), self.hooks_for(f"post_{kind}")
        if not (pre or post) or (id(self), name) in _running.get():
            return await method(self, *args, **kwargs)
        bound = _bind(signature, self, args, kwargs)
        for hook in pre:
            _change(bound, await _maybe(hook(self, deepcopy(_named(bound)))), hook)
        with _once(self, name):
            out = await method(*bound.args, **bound.kwargs)
        for hook in post:
            changed = await _maybe(hook(self, deepcopy(_named(bound)), deepcopy(out)))
            out = out if changed is None else changed
        return out

    @functools.wraps(method)
    def hooked_sync(self: Hooked, *args: Any, **kwargs: Any) -> Any:
        pre, post = self.hooks_for(f"pre_{kind}"), self.hooks_for(f"post_{kind}")
        if not (pre or post) or (id(self), name) in _running.get():
            return method(self, *args, **kwargs)
        bound = _bind(signature, self, args, kwargs)
        for hook in pre:
            _change(bound, _finish(hook(self, deepcopy(_named(bound))), hook, name), hook)
        with _once(self, name):
            out = method(*bound.args, **bound.kwargs)
        for hook in post:
            changed = _finish(hook(self, deepcopy(_named(bound)), deepcopy(out)), hook, name)
            out = out if changed is None else changed
        return out

    wrapped = hooked if inspect.iscoroutinefunction(method) else hooked_sync
    setattr(wrapped, _WRAPPED, True)
    return wrapped


@contextmanager
def _once(agent: Hooked, name: str) -> Iterator[None]:
    """Mark the method as running, so that a subclass's `super().reply()` does not run the hooks again."""
    token = _running.set(_running.get() | {(id(agent), name)})
    try:
        yield
    finally:
        _running.reset(token)


def _bind(signature: inspect.Signature, agent: Hooked, args: tuple[Any, ...],
          kwargs: dict[str, Any]) -> inspect.BoundArguments:
    bound = signature.bind(agent, *args, **kwargs)
    bound.apply_defaults()
    return bound


def _named(bound: inspect.BoundArguments) -> dict[str, Any]:
    return dict(list(bound.arguments.items())[1:])  # without self


def _change(bound: inspect.BoundArguments, changed: Any, hook: Hook) -> None:
    if changed is None:
        return
    if not isinstance(changed, dict):
        raise UsageError(f"The hook {hook!r} returned {type(changed).__name__}: a dictionary of arguments or None "
                         "is needed.")
    unknown = set(changed) - set(bound.signature.parameters)
    if unknown:
        raise UsageError(f"The hook {hook!r} returned arguments that the method does not take: "
                         f"{', '.join(sorted(map(str, unknown)))}.")
    bound.arguments.update(changed)


async def _maybe(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value


def _finish(value: Any, hook: Hook, name: str) -> Any:
    """The result of a hook around a plain `def`: an async one runs on a loop of its own."""
    if not inspect.isawaitable(value):
        return value
    if running_loop() is None:
        return asyncio.run(_as_coroutine(value))
    if inspect.iscoroutine(value):
        value.close()
    raise UsageError(f"The async hook {hook!r} sits on a plain `def {name}` that was called on a running loop. Make "
                     f"the hook a plain def, or {name} an async def.")


async def _as_coroutine(value: Awaitable[Any]) -> Any:
    return await value
