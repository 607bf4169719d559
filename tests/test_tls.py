"""TLS to Redis, as redis-py, kombu and Celery spell it."""

import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
import trustme
from celery import Celery

from callsheet import Settings
from callsheet.errors import SettingsError
from callsheet.resources.redis import sync_client
from callsheet.settings.celery import celery_config
from tests.proxy import Proxy
from tests.services import RedisServer


@pytest.fixture(scope="module")
def proxies(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """The beginnings of addresses of a Redis: of its own name, and of somebody else's."""
    authority, folder = trustme.CA(), tmp_path_factory.mktemp("tls")
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    addresses, made = [], []
    for name in ("127.0.0.1", "other.example"):
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        authority.issue_cert(name).configure_cert(context)
        made.append(Proxy(redis_server.port, tls=context))
        addresses.append(f"rediss://127.0.0.1:{made[-1].port}/0?ssl_ca_certs={Path(folder, 'ca.pem')}")
    yield addresses[0], addresses[1]
    for proxy in made:
        proxy.close()


def reach(url: str) -> None:
    """Redis, through our own client, the broker's and the result store's."""
    settings = Settings.load(redis_url=url)
    assert sync_client(settings).ping()
    app = Celery("tls")
    app.conf.update(celery_config(settings))
    with app.connection_for_write() as connection:
        assert connection.default_channel.client.ping()
    assert app.backend.client.ping()


@pytest.mark.parametrize("option", ["", "&ssl_cert_reqs=required", "&ssl_cert_reqs=CERT_REQUIRED",
                                    "&ssl_cert_reqs=CERT_NONE&ssl_check_hostname=no", "&ssl_check_hostname=True"])
def test_options_are_taken_in_either_spelling(proxies: tuple[str, str], option: str) -> None:
    reach(proxies[0] + option)


@pytest.mark.parametrize("option", ["&ssl_check_hostname=false", "&ssl_check_hostname=0"])
def test_the_name_in_the_certificate_is_checked_unless_an_option_says_otherwise(
        proxies: tuple[str, str], option: str) -> None:
    reach(proxies[1] + option)
    with pytest.raises(redis.ConnectionError, match="CERTIFICATE_VERIFY_FAILED"):
        reach(proxies[1])


@pytest.mark.parametrize(("url", "match"), [
    ("rediss://h/0?ssl_cert_reqs=maybe", "required, optional or none"),
    ("redis://h/0?ssl_ca_certs=/a.pem", "rediss:// only"),
    ("redis://h/0?password_fil=x", "'password_fil' is no option"),
    ("redis://:pw@h/0?password_file=/dev/null", "a password and a password_file"),
])
def test_options_that_cannot_be_are_refused(url: str, match: str) -> None:
    with pytest.raises(SettingsError, match=match):
        Settings.load(redis_url=url)
