"""Queue names that cannot be right are refused where they are given; Celery's own -Q takes what Celery takes."""

import re

import pytest
from celery import Celery

from callsheet.errors import SettingsError, UnknownQueue, UsageError
from callsheet.settings import Settings
from tests.agents.basic import Echo
from tests.services import Worker, worker
from tests.test_bad_input import HELLO

LONG = "q" * 5000
BAD = {"my queue": "because of ' '", "a,b": "because of ','", "q*": r"because of '\*'", "q[ab]?": r"'\[' '\]' '\?'",
       "tab\there": r"'\\t'", "line\n": r"'\\n'", "q\x06\x163": r"'\\x06' '\\x16'", LONG: "5,000 characters, and 200"}
GOOD = ["gpu", "a.b:c-d_e/f@g+1", "ünïcode", "q" * 200]


@pytest.mark.parametrize("name", BAD, ids=lambda name: repr(name[:10]))
def test_the_settings_name_the_queue_and_what_is_wrong_with_it(name):
    with pytest.raises(SettingsError, match=f"(?s)CALLSHEET_QUEUES.*cannot be a queue's name.*{BAD[name]}") as caught:
        Settings.load(queues=(name,))
    assert LONG not in str(caught.value).partition("cannot")[2]


def test_an_empty_name_too():
    with pytest.raises(SettingsError, match="a queue's name is needed"):
        Settings.load(queues=("",))


@pytest.mark.parametrize("name", GOOD)
def test_all_others_are_taken(name):
    assert name in Settings.load(queues=(name,)).known_queues
    assert type("Given", (Echo,), {}, queue=name).default_queue() == name


@pytest.mark.parametrize("name", BAD, ids=lambda name: repr(name[:10]))
def test_a_call_to_one_is_refused_before_it_is_sent(nothing_sent, name):
    for submit in (lambda: Echo("a").submit(HELLO, queue=name), lambda: Echo("a").options(queue=name).submit(HELLO)):
        with pytest.raises(UnknownQueue, match=rf"Echo\(a\).*cannot be a queue's name.*{BAD[name]}") as caught:
            submit()
        assert "CALLSHEET_QUEUES" not in str(caught.value)  # it would not help
    nothing_sent()


def test_so_is_a_call_to_an_empty_one(nothing_sent):
    with pytest.raises(UsageError, match="queue='': a queue's name is needed"):
        Echo("a").submit(HELLO, queue="")
    nothing_sent()


@pytest.mark.parametrize("name", [*BAD, "", 5], ids=lambda name: repr(name)[:10])
def test_a_class_cannot_be_given_one(name):
    with pytest.raises(UsageError, match=r"class Given\(queue=\.\.\.\): .*"):
        type("Given", (Echo,), {}, queue=name)


def test_stock_use_of_minus_q_takes_what_celery_takes(own_redis):
    names = ["io", "my queue", "q[ab]*?", "ünïcode", LONG]
    with worker("callsheet.workers.io", own_redis.url, "-c", "2", "-Q", ",".join(names),
                env={"CALLSHEET_MODULES": "tests.agents.user_tasks"}):
        app = Celery("client", broker=own_redis.url, backend=own_redis.url, set_as_current=False)
        results = [app.send_task("tests.add_soon", (number, 1), queue=name) for number, name in enumerate(names)]
        assert [result.get(20)[0] for result in results] == [1, 2, 3, 4, 5]
        app.close()


@pytest.mark.parametrize(("kind", "given"), [("io", ""), ("io", "io,"), ("cpu", "cpu,,gpu")])
def test_an_empty_name_in_minus_q_ends_the_worker_with_the_remedy(own_redis, kind, given):
    process = Worker(f"callsheet.workers.{kind}", own_redis.url, "-c", "1", "-Q", given)
    try:
        assert process.process.wait(30) == 1
        assert re.search(r"-Q names an empty queue.*-Q io,gpu", process.log)
    finally:
        process.log_path.unlink(missing_ok=True)
