"""Who is to blame for a process that ended, and in what words."""

from __future__ import annotations

import signal

from agentrl.errors import AgentError, EpisodeTimeout, WorkerError
from agentrl.rollout.subproc.process import KillReason, how_it_ended
from agentrl.rollout.subproc.worker import failure_of


def test_whoever_was_alone_in_a_process_has_ended_it():
    error = failure_of(7, 0, "was ended by SIGSEGV", None)
    assert type(error) is AgentError
    assert error.message == "the agent's process was ended by SIGSEGV"


def test_of_several_nobody_is_known_to_be_to_blame():
    error = failure_of(7, 3, "was ended by SIGSEGV", None)
    assert type(error) is WorkerError
    assert error.message == "the process of this and 3 other episodes was ended by SIGSEGV"


def test_a_culprit_that_is_known_is_told_so_and_the_others_are_not():
    sentence = KillReason("did not end an episode", 7, EpisodeTimeout("too late"))
    assert failure_of(7, 3, "…", sentence) is sentence.error
    assert type(failure_of(8, 3, "…", sentence)) is WorkerError
    assert type(failure_of(8, 0, "…", sentence)) is WorkerError


def test_the_ways_to_end():
    assert how_it_ended(3, None, "") == "ended with exit code 3 and no answer"
    assert how_it_ended(0, None, "bye") == "ended with exit code 0 and no answer; it printed last: bye"
    assert how_it_ended(-signal.SIGSEGV, None, "") == "was ended by SIGSEGV"
    assert how_it_ended(-signal.SIGKILL, None, "") == "was ended by SIGKILL, as where memory runs out"
    assert how_it_ended(-63, None, "") == "was ended by signal 63"
    assert how_it_ended(-signal.SIGKILL, KillReason("printed more"), "") == "printed more, and was killed"
