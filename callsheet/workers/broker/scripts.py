"""The transport's Lua scripts."""

from pathlib import Path

from callsheet.resources.scripts import Script

_HERE = Path(__file__).parent

BEGIN = Script(_HERE / "begin.lua")
PUBLISH = Script(_HERE / "publish.lua")
CLAIM = Script(_HERE / "claim.lua")
RENEW = Script(_HERE / "renew.lua")
EXPIRED = Script(_HERE / "expired.lua")
_ENTRIES = _HERE / "entries.lua"
PUT_AWAY = Script(_HERE / "putaway.lua", _ENTRIES)
BRING_BACK = Script(_HERE / "bringback.lua", _ENTRIES)
REVOKE = Script(_HERE / "revoke.lua", _ENTRIES)
GIVE_BACK = Script(_HERE / "giveback.lua")
