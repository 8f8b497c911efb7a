"""The parts that an examination is made of: findings, deadlines, samples, reasons."""

from __future__ import annotations

import threading

import pytest

from agentrl.doctor.agent import parted
from agentrl.doctor.examination import Alarm
from agentrl.doctor.report import Diagnosis, Section, note, of_error, ok, problem, skipped, warning
from agentrl.errors import BackendError, ConfigError, PluginError


def test_the_exit_code_is_that_of_the_first_problem():
    first = problem("it is gone", fix="install it", like=PluginError)
    diagnosis = Diagnosis([Section("a", [ok("good", n=1), first]), Section("b", [of_error(ConfigError("no"))])])
    assert (diagnosis.ready, diagnosis.exit_code) == (False, 3)
    assert Diagnosis([Section("a", [warning("slow", fix="wait"), note("so")])]).exit_code == 0


def test_a_section_blocks_others_by_what_it_could_not_find_out():
    assert Section("a", [of_error(BackendError("dead", fix="mend it"))]).blocked
    assert Section("a", [skipped("needs b")]).blocked
    assert not Section("a", [problem("tight", fix="less"), warning("slow", fix="wait")]).blocked


def test_a_diagnosis_is_plain_json():
    told = Diagnosis([Section("a", [ok("good", speed=2.5), problem("bad", fix="mend it")], seconds=1.23456)]).to_json()
    assert told == {
        "ready": False,
        "learns": False,
        "problems": 1,
        "warnings": 0,
        "skipped": 0,
        "sections": [
            {
                "name": "a",
                "seconds": 1.235,
                "findings": [
                    {"level": "ok", "text": "good", "fix": None, "figures": {"speed": 2.5}},
                    {"level": "problem", "text": "bad", "fix": "mend it", "figures": {}},
                ],
            }
        ],
    }


def test_an_alarm_says_where_the_thread_that_made_it_hangs():
    rung, locations = threading.Event(), []

    def expired(location):
        locations.append(location)
        rung.set()

    with Alarm(expired) as alarm:
        alarm.set(0.05)
        assert rung.wait(30)
    assert locations[0].startswith(f" at {__file__}:")


def test_an_alarm_that_is_put_off_or_left_does_not_ring():
    rung = threading.Event()
    with Alarm(lambda _: rung.set()) as alarm:
        alarm.set(0.2)
        alarm.set(60)
        assert not rung.wait(0.5)
    with Alarm(lambda _: rung.set()):
        pass
    assert not rung.is_set()


@pytest.mark.parametrize(
    ("reason", "parts"),
    [
        ("it is late (raise the deadline)", ("it is late", "raise the deadline")),
        ("it is (very) late (raise it, see f(x))", ("it is (very) late", "raise it, see f(x)")),
        ("the agent raised SystemExit(3)", ("the agent raised SystemExit(3)", None)),
        ("LookupError: no (such) tool at agents.py:3", ("LookupError: no (such) tool at agents.py:3", None)),
        ("unbalanced)", ("unbalanced)", None)),
        ("(all of it)", ("(all of it)", None)),
        ("", ("", None)),
    ],
)
def test_a_reason_is_parted_from_the_fix_that_it_ends_with(reason, parts):
    assert parted(reason) == parts
