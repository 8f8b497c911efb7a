"""The stages of a start, and the reason of a failure, as a server prints them."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentrl_vllm.server import ServerLog, phase_of

HEAD = "(APIServer pid=1652) INFO 11-24 11:36:53 [api_utils.py:347]   █▄█▀ █     █     █     █  version 0.32.0\n"


@pytest.mark.parametrize(
    ("line", "phase"),
    [
        ("", "reading its configuration"),
        ("[core.py:133] Initializing a V1 LLM engine (v0.32.0) with config: model='/tiny'", "starting its engine"),
        ("[cpu_model_runner.py:68] Starting to load model /tiny...", "loading the weights"),
        ("[default_loader.py:501] Loading weights took 0.02 seconds", "measuring its memory"),
        ("[backends.py:1] Dynamo bytecode transform time: 5.2 s", "compiling the model"),
        ("Capturing CUDA graphs (decode, FULL):  10%", "capturing CUDA graphs"),
        ("[kv_cache_utils.py:2327] CPU KV cache size: 65,536 tokens", "warming up"),
        ("[entry.py:140] Starting vLLM server on http://127.0.0.1:8765", "opening its port"),
    ],
)
def test_a_line_tells_the_stage(line: str, phase: str) -> None:
    assert phase_of(HEAD + line) == phase


def test_a_server_that_has_printed_nothing_yet_is_importing() -> None:
    assert phase_of("") == "importing vLLM"


def test_settings_that_speak_of_compiling_are_no_compiling() -> None:
    assert phase_of(HEAD + "WARNING Enforce eager set, disabling torch.compile, CUDAGraphs") != "compiling the model"


TRACEBACK = """\
(EngineCore pid=2) ERROR 11-24 12:00:01 [core.py:1] EngineCore failed to start.
(EngineCore pid=2) ERROR 11-24 12:00:01 [core.py:1] Traceback (most recent call last):
(EngineCore pid=2) ERROR 11-24 12:00:01 [core.py:1]   File "core.py", line 1, in run
(EngineCore pid=2) ERROR 11-24 12:00:01 [core.py:1] ValueError: the KV cache is too small
(EngineCore pid=2) ERROR 11-24 12:00:02 [core.py:1] Exception: WorkerProc failed. See stack trace for root cause.
(APIServer pid=1) Traceback (most recent call last):
(APIServer pid=1) RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}
"""


def test_the_root_of_a_failure_is_found(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.touch()
    read = ServerLog(log)
    log.write_text(HEAD + TRACEBACK)
    assert read.failure == "ValueError: the KV cache is too small"


def test_a_wrong_flag_is_the_cause(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.touch()
    read = ServerLog(log)
    log.write_text("usage: api_server.py [-h]\napi_server.py: error: unrecognized arguments: --bogus\n")
    assert read.failure == "api_server.py: error: unrecognized arguments: --bogus"


def test_what_pydantic_finds_wrong_is_the_cause(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.touch()
    read = ServerLog(log)
    log.write_text(
        "(APIServer pid=1) pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig\n"
        "(APIServer pid=1)   Value error, max_model_len (4000) is too great. [type=value_error]\n"
        "(APIServer pid=1)     For further information visit https://errors.pydantic.dev\n"
    )
    assert read.failure is not None
    assert read.failure.endswith(
        "1 validation error for ModelConfig Value error, max_model_len (4000) is too great. [type=value_error]"
    )


def test_last_lines_leave_out_what_tells_nothing(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.touch()
    read = ServerLog(log)
    log.write_text(
        "first\n\n  File x\n[core.py:1]     frame\n  warnings.warn(\nx.py:1: FutureWarning: old\n"
        + "line   with  spaces\n" * 2
    )
    assert read.last_lines() == "first | line with spaces | line with spaces"
