"""A master, its replica and three sentinels, all real and with passwords."""

import contextlib
import signal
import subprocess
from pathlib import Path

import redis

from callsheet import Settings
from tests.services import RedisServer, free_port, redis_binary, wait_for

PASSWORD, SENTINELS_PASSWORD = "hunter2/@", "s3ntry"
NAME = "main"


class Watched:
    """The servers and their sentinels."""

    def __init__(self) -> None:
        login = ("--requirepass", PASSWORD, "--masterauth", PASSWORD)
        self.master = RedisServer(*login, password=PASSWORD)
        self.replica = RedisServer(*login, "--replicaof", "127.0.0.1", str(self.master.port), password=PASSWORD)
        self.ports = [free_port() for _ in range(3)]
        self.processes = [self._sentinel(port) for port in self.ports]
        wait_for(lambda: self.replica.client().info("replication")["master_link_status"] == "up", what="replication")
        wait_for(lambda: all(self._sees_all(port) for port in self.ports), 30, "sentinels that know each other")

    def _sentinel(self, port: int) -> "subprocess.Popen[bytes]":
        conf = Path(self.master.folder) / f"sentinel-{port}.conf"
        conf.write_text(f"port {port}\nbind 127.0.0.1\nrequirepass {SENTINELS_PASSWORD}\n"
                        f"sentinel sentinel-pass {SENTINELS_PASSWORD}\n"
                        f"sentinel monitor {NAME} 127.0.0.1 {self.master.port} 2\n"
                        f"sentinel auth-pass {NAME} {PASSWORD}\nsentinel down-after-milliseconds {NAME} 1000\n"
                        f"sentinel failover-timeout {NAME} 5000\n")
        return subprocess.Popen([str(redis_binary()), str(conf), "--sentinel"], stdout=subprocess.DEVNULL)

    def _sees_all(self, port: int) -> bool:
        with contextlib.suppress(redis.RedisError):
            state = self.ask(port).sentinel_master(NAME)
            return state["num-slaves"] == 1 and state["num-other-sentinels"] == 2
        return False

    @staticmethod
    def ask(port: int) -> redis.Redis:
        return redis.Redis(port=port, password=SENTINELS_PASSWORD, decode_responses=True)

    @property
    def url(self) -> str:
        first, *others = self.ports
        rest = "".join(f";sentinel://127.0.0.1:{port}" for port in others)
        return f"sentinel://:hunter2%2F%40@127.0.0.1:{first}{rest}/2"

    @property
    def env(self) -> dict[str, str]:
        return {"CALLSHEET_REDIS_SENTINEL_MASTER": NAME, "CALLSHEET_REDIS_SENTINEL_PASSWORD": SENTINELS_PASSWORD}

    def settings(self, **changes: object) -> Settings:
        return Settings.load(**{"redis_url": self.url, "redis_sentinel_master": NAME,
                                "redis_sentinel_password": SENTINELS_PASSWORD, **changes})

    def fail_over(self) -> None:
        """Kill the master, and wait until the replica is it; what was written before is on both."""
        wait_for(lambda: self.master.client().wait(1, 1000) == 1, what="the replica to have everything")
        self.master.stop(signal.SIGKILL)
        new = self.replica.port
        wait_for(lambda: all(self.ask(port).sentinel_get_master_addr_by_name(NAME)[1] == new for port in self.ports),
                 40, "the replica to be promoted")

    def remove(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait(10)
        self.replica.remove()
        self.master.remove()

