"""Objects with state: which of their attributes are kept, and as what JSON data."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from callsheet.errors import CannotTravel, StateMissing, UsageError
from callsheet.messages.secrecy import refuse, refuse_known

ToJson = Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class Registered:
    """How a registered attribute becomes JSON data and comes back."""

    to_json: ToJson | None = None
    from_json: ToJson | None = None


class StateModule:
    """Base of what has state: agents, memories, toolkits; AgentScope's.

    The state is the attributes named with `register_state`, and that of the state modules among the attributes, to
    any depth. A subclass need not call `super().__init__()`.
    """

    def register_state(self, attr_name: str, custom_to_json: ToJson | None = None,
                       custom_from_json: ToJson | None = None) -> None:
        """Have an attribute kept; in the constructor, after the attribute is set.

        Args:
            attr_name: of the attribute.
            custom_to_json: makes JSON data of its value, where it is none.
            custom_from_json: makes the value of that data.

        Raises:
            CannotTravel: the value is not JSON data, and nothing makes it so (a TypeError).
            ValueError: the attribute is a state module, which is kept anyway.
            AttributeError: there is no such attribute.
        """
        value = getattr(self, attr_name)
        if isinstance(value, StateModule):
            raise ValueError(f"{type(self).__name__}.{attr_name} is a state module itself, and kept as it is: do not "
                             "register it.")
        registered = Registered(custom_to_json, custom_from_json)
        if custom_to_json is None:
            to_json(self, attr_name, registered)
        self._registrations()[attr_name] = registered

    def _registrations(self) -> dict[str, Registered]:
        """The attributes that `register_state` named."""
        known: dict[str, Registered] = self.__dict__.setdefault("_registered", {})
        return known

    def _state_modules(self) -> dict[str, "StateModule"]:
        """The state modules among the attributes, by name."""
        return {name: value for name, value in vars(self).items() if isinstance(value, StateModule)}

    def has_state(self) -> bool:
        """Whether there is anything to keep.

        By default: a registered attribute, a module below that has state, or a `state_dict` of its own.
        """
        if self.__dict__.get("_registered") or type(self).state_dict is not StateModule.state_dict:
            return True
        return any(module.has_state() for module in self._state_modules().values())

    def state_dict(self) -> dict[str, Any]:
        """The state as JSON data: modules and registered attributes by name.

        Raises:
            CannotTravel: a value is not JSON data any more.
        """
        state: dict[str, Any] = {name: module.state_dict() for name, module in self._state_modules().items()}
        for name, how in self._registrations().items():
            state[name] = how.to_json(getattr(self, name)) if how.to_json else getattr(self, name)
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> None:
        """Take the state that `state_dict` gave.

        Args:
            state_dict: the state.
            strict: whether each part must be there; otherwise what is not there stays as it is.

        Raises:
            StateMissing: a part is not there (a KeyError).
            UsageError: it is no dictionary.
        """
        if not isinstance(state_dict, Mapping):
            raise UsageError(f"The state of a {type(self).__name__} is a dictionary, not {type(state_dict).__name__}.")
        modules = self._state_modules()
        missing = [name for name in [*modules, *self._registrations()] if name not in state_dict]
        if missing and strict:
            raise StateMissing(f"The state of a {type(self).__name__} lacks {', '.join(missing)}; it has "
                               f"{', '.join(map(str, state_dict)) or 'nothing'}. With strict=False, what is not there "
                               "stays as it is.")
        for name, module in modules.items():
            if name in state_dict:
                module.load_state_dict(state_dict[name], strict)
        for name, how in self._registrations().items():
            if name in state_dict:
                value = state_dict[name]
                setattr(self, name, how.from_json(value) if how.from_json else value)


def to_json(module: StateModule, name: str, how: Registered) -> str:
    """The JSON text of a registered attribute.

    Raises:
        CannotTravel: it has none; names it.
    """
    value = getattr(module, name)
    try:
        text = json.dumps(how.to_json(value) if how.to_json else value, ensure_ascii=False, separators=(",", ":"))
    except Exception as exc:
        where = "custom_to_json gave" if how.to_json else "it is"
        raise CannotTravel(f"The state {name!r} of {type(module).__name__} cannot be kept: {where} a "
                           f"{type(value).__name__} that is not JSON data ({exc}). Keep text, numbers, lists and "
                           "dictionaries of them, or give register_state a custom_to_json and custom_from_json."
                           ) from exc
    where = f"The state {name!r} of {type(module).__name__}"
    refuse(value if isinstance(value, str) else "", name, where)
    refuse_known(text, where)
    return text
