"""Groups of tools: what is offered to the model now, and how it chooses."""

import logging
from collections.abc import Mapping
from typing import Any

from callsheet.errors import ToolError
from callsheet.messages import Recorded, StateModule
from callsheet.tools.registered import RegisteredToolFunction, ToolGroup, names_in
from callsheet.tools.response import ToolResponse, text_response

logger = logging.getLogger(__name__)
BASIC = "basic"
META_TOOL = "reset_equipped_tools"


class Grouped(StateModule, Recorded):
    """The groups of a toolkit. Tools in "basic" are always offered; others while their group is active.

    Which groups are active is the toolkit's state.

    Attributes:
        tools: by name.
        groups: by name, without "basic".
    """

    tools: dict[str, RegisteredToolFunction]
    groups: dict[str, ToolGroup]

    def create_tool_group(self, group_name: str, description: str, active: bool = False,
                          notes: str | None = None) -> None:
        """Add a group.

        Args:
            group_name: its name.
            description: what its tools are for, for the model that chooses among groups.
            active: whether its tools are offered from the start.
            notes: how to use them, for the system prompt.

        Raises:
            ToolError: there is a group of that name.
        """
        if group_name in self.groups or group_name == BASIC:
            raise ToolError(f"There is a tool group {group_name!r} already. Choose another name.")
        self.groups[group_name] = ToolGroup(name=group_name, active=active, description=description, notes=notes)

    def update_tool_groups(self, group_names: list[str], active: bool) -> None:
        """Switch groups on or off; names that are no group's are passed over."""
        for name in group_names:
            if name == BASIC:
                logger.warning("The tool group 'basic' is always active.")
            elif name in self.groups:
                self.groups[name].active = active

    def remove_tool_groups(self, group_names: str | list[str]) -> None:
        """Take groups away, with their tools.

        Raises:
            UsageError: not a name or a list of names.
            ToolError: "basic" is among them.
        """
        names = names_in(group_names, "group_names")
        if BASIC in names:
            raise ToolError("The tool group 'basic' cannot be removed. Use clear(), or remove_tool_function(name).")
        for name in names:
            self.groups.pop(name, None)
        for tool in [tool for tool in self.tools.values() if tool.group in names]:
            del self.tools[tool.name]

    def is_offered(self, tool: RegisteredToolFunction) -> bool:
        """Whether the model is offered it now."""
        return tool.group == BASIC or self.groups[tool.group].active

    def get_activated_notes(self) -> str:
        """The notes of the active groups, for the system prompt."""
        return "\n".join(f"## About Tool Group '{group.name}'\n{group.notes}"
                         for group in self.groups.values() if group.active and group.notes)

    def reset_equipped_tools(self, **kwargs: Any) -> ToolResponse:
        """Choose the tool groups that you need now.

        Each call sets the state of all groups: those that you do not set to true are switched off, whatever they
        were before. Switch on what the task at hand needs, and nothing else. The answer tells how the tools of the
        groups that are on must be used; call this again to read it again.
        """
        odd = [f"{name!r} is not true or false" for name, value in kwargs.items() if not isinstance(value, bool)]
        odd += [f"there is no group {name!r}" for name in kwargs if name not in self.groups]
        if odd:
            return text_response(f"Error: {'; '.join(odd)}. There are {', '.join(self.groups) or 'no groups'}.")
        for name, group in self.groups.items():
            group.active = kwargs.get(name, False)
        active = [name for name, group in self.groups.items() if group.active]
        if not active:
            return text_response("All tool groups are off now.")
        notes = self.get_activated_notes()
        told = f" Follow these notes when you use their tools:\n<notes>{notes}</notes>" if notes else ""
        return text_response(f"These tool groups are on now: {', '.join(active)}.{told}")

    def _meta_schema(self, tool: RegisteredToolFunction) -> dict[str, Any]:
        """The schema of the meta tool: a switch for each group."""
        switches = {name: {"type": "boolean", "default": False, "description": group.description}
                    for name, group in self.groups.items()}
        function = tool.json_schema["function"]
        parameters = {**function["parameters"], "properties": switches}
        return {**tool.json_schema, "function": {**function, "parameters": parameters}}

    def has_state(self) -> bool:
        """Whether there is anything to keep: groups."""
        return bool(self.groups)

    def state_dict(self) -> dict[str, Any]:
        """Which groups are active, as JSON data."""
        return {"active_groups": [name for name, group in self.groups.items() if group.active]}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> None:
        """Switch groups as `state_dict` gave them.

        Args:
            state_dict: as `state_dict()` gives it.
            strict: whether other keys are refused.

        Raises:
            ToolError: it is something else.
        """
        names = state_dict.get("active_groups") if isinstance(state_dict, Mapping) else None
        if not isinstance(names, list) or (strict and len(state_dict) > 1):
            raise ToolError(f"The state of a toolkit is {{'active_groups': [names]}}, not {state_dict!r:.200}.")
        for name, group in self.groups.items():
            group.active = name in names
