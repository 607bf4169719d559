"""What a worker takes of its machine, and what its control group allows it; None where that cannot be read."""

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil

PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")
_NO_LIMIT = 1 << 60  # bytes: what version 1 says where there is none is about 2^63


def memory_of(pid: int) -> int | None:
    """Resident bytes of a process."""
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return None


def own_share_of(pid: int) -> int | None:
    """Resident bytes of a process, where pages that several share count for each by its part.

    What a process forked off has in common with it counts once; without this, as often as there are processes.
    """
    try:
        found = psutil.Process(pid).memory_full_info()
    except psutil.Error:
        return memory_of(pid)
    return int(getattr(found, "pss", found.rss))


def cpu_seconds(pid: int) -> float | None:
    """Processor time that a process has taken."""
    try:
        taken = psutil.Process(pid).cpu_times()
    except psutil.Error:
        return None
    return float(taken.user + taken.system)


def machine_memory() -> tuple[int, int]:
    """Bytes that are in use on the machine, without what could be had at once, and all that there are."""
    found = psutil.virtual_memory()
    return found.total - found.available, found.total


def family_of(pid: int) -> list[int]:
    """A process and all that it has started, and they; itself alone where that cannot be read."""
    found = [pid]
    for one in found:  # psutil reads of every process of the machine whose child it is
        try:
            found += map(int, (PROC / str(one) / "task" / str(one) / "children").read_text().split())
        except (OSError, ValueError):
            continue
    return found


class Processors:
    """The share of processors' time that some processes take, from one look to the next.

    Args:
        cores: that count as all.
    """

    def __init__(self, cores: float) -> None:
        self._cores = cores
        self._seen: dict[int, float] = {}
        self._at = 0.0

    def share(self, pids: Iterable[int]) -> float | None:
        """Since the last look, over 0 to 1; None at the first."""
        now, found = time.monotonic(), {pid: taken for pid in pids if (taken := cpu_seconds(pid)) is not None}
        passed, used = now - self._at, sum(taken - self._seen.get(pid, taken) for pid, taken in found.items())
        known, self._seen, self._at = bool(self._seen), found, now
        return max(0.0, used / (passed * self._cores)) if known and passed > 0 else None


@dataclass(frozen=True)
class Group:
    """A worker's control group."""

    memory: Path | None  # folder with its memory's files, or None
    cpu: Path | None  # folder with its processors' files, or None
    unified: bool  # whether it is of version 2

    @classmethod
    def own(cls, proc: Path = PROC, root: Path = CGROUPS) -> "Group":
        """This process's."""
        try:
            lines = [line.split(":", 2) for line in (proc / "self" / "cgroup").read_text().splitlines()]
        except OSError:
            return cls(None, None, True)
        paths = {name: path for _, names, path in lines for name in names.split(",")}
        if "memory" in paths:
            return cls(_folder(root / "memory", paths["memory"]),
                       _folder(root / "cpu", paths.get("cpu", "/")), False)
        found = _folder(root, paths.get("", "/"))
        return cls(found, found, True)

    def memory_limit(self) -> int | None:
        """Bytes that it may use, by its own limit and those above it."""
        name = "memory.max" if self.unified else "memory.limit_in_bytes"
        limits = [int(text) for text in _up(self.memory, name) if text.isdigit()]
        return min((limit for limit in limits if 0 < limit < _NO_LIMIT), default=None)

    def memory_used(self) -> int | None:
        """Bytes that it uses, without files' contents that could be dropped at once."""
        if self.memory is None:
            return None
        used = _text(self.memory / ("memory.current" if self.unified else "memory.usage_in_bytes"))
        stat = dict(line.partition(" ")[::2] for line in _text(self.memory / "memory.stat").splitlines())
        idle = stat.get("inactive_file" if self.unified else "total_inactive_file", "0")
        return max(0, int(used) - int(idle)) if used.isdigit() else None

    def cores(self) -> float | None:
        """Processors that it may use, or None for no limit."""
        if self.unified:
            parts = [text.split() for text in _up(self.cpu, "cpu.max")]
        else:
            parts = [list(pair) for pair in zip(_up(self.cpu, "cpu.cfs_quota_us"), _up(self.cpu, "cpu.cfs_period_us"),
                                                strict=False)]
        quotas = [int(pair[0]) / int(pair[1]) for pair in parts if len(pair) == 2 and pair[0].isdigit()
                  and pair[1].isdigit() and int(pair[0]) > 0 and int(pair[1]) > 0]
        return min(quotas, default=None)


def cores(group: Group) -> float:
    """Processors that this process may use."""
    able = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    allowed = group.cores()
    return float(able) if allowed is None else min(float(able), allowed)


def _folder(mount: Path, path: str) -> Path | None:
    """A group's folder; in a container, which may see its own group as the topmost, that one."""
    for folder in (mount / path.lstrip("/"), mount):
        if folder.is_dir():
            return folder
    return None


def _up(folder: Path | None, name: str) -> list[str]:
    """A file's text in a group and in those above it."""
    found = []
    while folder is not None and (folder / name).is_file():
        found.append(_text(folder / name))
        folder = folder.parent
    return found


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
