"""A message as our consumers get it."""

import contextlib
from typing import Any

from callsheet.messages.quick import loads
from callsheet.workers.broker.stock import virtual

_JSON = "application/json"


class Message(virtual.Message):
    """Kombu's. Plain JSON, which is nearly every body, is read without kombu's hook for types that JSON lacks."""

    def _decode(self) -> Any:
        if self.content_type == _JSON and (self.accept is None or _JSON in self.accept):
            body = self.body
            marked = b'"__type__"' in body if isinstance(body, bytes) else '"__type__"' in (body or "")
            if not marked:
                with contextlib.suppress(ValueError, TypeError, RecursionError):  # then kombu raises as expected
                    return loads(body)
        return super()._decode()
