"""How a Flower on the loopback address tells this machine's browsers from other web sites that they visit."""

import tornado.web
from flower.views import BaseHandler
from flower.views.auth import get_next_url

from callsheet.cli.flower_access import LOCAL_USER
from callsheet.workers.metrics.port import is_loopback


class LocalLogin(BaseHandler):
    """Signs whoever comes to this machine's own name in, without asking; for Flower's `auth_provider`.

    Flower without any sign-in has its buttons refused, or takes whatever any web site sends. With this, a
    request counts only with the cookie that is given here, which browsers send from Flower's own pages alone.
    A site whose name was made to point to this machine has another host's name.
    """

    def get(self) -> None:
        """Give the cookie, and go on to the page that was asked for."""
        refuse_other_names(self)
        self.set_secure_cookie("user", LOCAL_USER)
        self.redirect(get_next_url(self))


def refuse_other_names(handler: BaseHandler) -> None:
    """Refuse a request that calls this machine by another name than its own.

    Raises:
        tornado.web.HTTPError: it does.
    """
    host = handler.request.host_name
    if not is_loopback(host):
        raise tornado.web.HTTPError(403, f"This Flower is for its own machine, not for {host}. To reach it by other "
                                         "names, set CALLSHEET_FLOWER_AUTH=user:password.")
