"""How a Flower on the loopback address tells this machine's browsers from other web sites that they visit."""

import ipaddress

import tornado.web
from flower.views import BaseHandler
from flower.views.auth import get_next_url

from callsheet.cli.flower_access import LOCAL_USER


class LocalLogin(BaseHandler):
    """Signs whoever comes to this machine's own name in, without asking; for Flower's `auth_provider`.

    Flower without any sign-in has its buttons refused, or takes whatever any web site sends. With this, a
    request counts only with the cookie that is given here, which browsers send from Flower's own pages alone.
    A site whose name was made to point to this machine has another host's name.
    """

    def get(self) -> None:
        """Give the cookie, and go on to the page that was asked for."""
        if not _own_name(self.request.host_name):
            raise tornado.web.HTTPError(403, f"This Flower is for its own machine, not for {self.request.host_name}. "
                                             "To reach it by other names, set CALLSHEET_FLOWER_AUTH=user:password.")
        self.set_secure_cookie("user", LOCAL_USER)
        self.redirect(get_next_url(self))


def _own_name(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
