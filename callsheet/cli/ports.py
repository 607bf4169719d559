"""Ports on the loopback address."""

import contextlib
import errno
import socket

import click
import redis

LOOPBACK = "127.0.0.1"


def chosen(port: int, what: str, option: str, remedy: str = "", host: str = LOOPBACK) -> int:
    """`port` if it is free, or any free one for 0; "" for the host is all of this machine's addresses.

    Raises:
        click.ClickException: it is in use; names `what` wants it, the `option` that sets it, and another `remedy`.
    """
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((host, port))
        except (OSError, UnicodeError) as exc:
            why = getattr(exc, "strerror", "") or str(exc)
            if isinstance(exc, (socket.gaierror, UnicodeError)) or exc.errno == errno.EADDRNOTAVAIL:
                raise click.ClickException(f"{what} cannot listen on {host}: {why}. Give an address of this machine, "
                                           "or 0.0.0.0 for all.") from None
            raise click.ClickException(f"{what} cannot listen on port {port} of {host or 'this machine'}: {why}. Give "
                                       f"another with {option} (0: any free one){remedy}.") from None
        return int(sock.getsockname()[1])


def answers_redis(port: int) -> bool:
    """Whether a Redis answers there."""
    with contextlib.suppress(redis.RedisError, OSError):
        client = redis.Redis(host=LOOPBACK, port=port, socket_timeout=1, socket_connect_timeout=1)
        try:
            return bool(client.ping())
        except redis.AuthenticationError:
            return True
        finally:
            client.close()
    return False
