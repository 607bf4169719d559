"""Group conversations: what one member of a hub says, the others hear."""

from callsheet.hub.broadcast import say
from callsheet.hub.elastic import ElasticGroup, GroupStatus
from callsheet.hub.listening import HubEvent, Listening, listen
from callsheet.hub.msghub import MsgHub
from callsheet.hub.records import HubInfo, Member

__all__ = ["ElasticGroup", "GroupStatus", "HubEvent", "HubInfo", "Listening", "Member", "MsgHub", "listen", "say"]
