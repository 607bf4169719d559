"""Log lines are gathered: in order, whole, and not lost where a process ends in order."""

import io
import logging
import subprocess
import sys
import threading

from callsheet.workers.logs import GatheredStream, gather_lines
from tests.services import wait_for


class Counting(io.StringIO):
    """A stream that counts its writes."""

    writes = 0

    def write(self, text: str) -> int:
        """Count it."""
        self.writes += 1
        return super().write(text)


def test_many_lines_of_many_threads_take_few_writes_and_none_is_lost_or_torn() -> None:
    out = Counting()
    stream = GatheredStream(out)

    def log(name: str) -> None:
        for number in range(500):
            stream.write(f"{name} {number}\n")

    threads = [threading.Thread(target=log, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wait_for(lambda: out.getvalue().count("\n") == 2000, what="all lines")
    lines = out.getvalue().splitlines()
    for name in "abcd":
        assert [line for line in lines if line.startswith(name)] == [f"{name} {number}" for number in range(500)]
    assert out.writes < 500


def test_handlers_of_one_stream_share_it_so_that_the_order_stays() -> None:
    out = io.StringIO()
    one, two = logging.Logger("one"), logging.Logger("two")
    for logger in (one, two):
        logger.addHandler(logging.StreamHandler(out))
        gather_lines(logger)
        gather_lines(logger)  # a second time changes nothing
    for number in range(50):
        (one, two)[number % 2].warning("%d", number)
    wait_for(lambda: out.getvalue().count("\n") == 50, what="all lines")
    assert out.getvalue().split() == [str(number) for number in range(50)]


def test_what_was_logged_last_is_written_when_the_process_exits_and_when_it_forks() -> None:
    code = ("import logging, os, sys\n"
            "from callsheet.workers.logs import gather_lines\n"
            "logger = logging.Logger('x'); logger.addHandler(logging.StreamHandler(sys.stdout)); gather_lines(logger)\n"
            "logger.warning('before')\n"
            "if os.fork() == 0:\n"
            "    logger.warning('child'); sys.exit()\n"
            "os.wait(); logger.warning('parent')\n")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["before", "child", "parent"]


def test_a_closed_stream_does_not_end_the_thread_that_writes() -> None:
    out = io.StringIO()
    stream = GatheredStream(out)
    out.close()
    stream.write("lost\n")
    wait_for(lambda: not stream._texts, what="the write")
    assert stream._thread is not None and stream._thread.is_alive()
