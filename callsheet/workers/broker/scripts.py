"""The transport's Lua scripts."""

from pathlib import Path

from callsheet.resources.scripts import Script

_HERE = Path(__file__).parent

CLAIM = Script(_HERE / "claim.lua")
RENEW = Script(_HERE / "renew.lua")
EXPIRED = Script(_HERE / "expired.lua")
GIVE_BACK = Script(_HERE / "giveback.lua")
