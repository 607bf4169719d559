"""The parts of kombu that the transport builds on, as the untyped code that they are."""

from typing import Any

from kombu.transport import redis as _redis
from kombu.transport import virtual as _virtual
from kombu.utils import json as _json

redis: Any = _redis
virtual: Any = _virtual
json: Any = _json
