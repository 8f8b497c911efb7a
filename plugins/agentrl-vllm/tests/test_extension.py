"""A folder of weights is looked at before a server's model is touched, and a worker that fails to load ends."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import agentrl_vllm

OURS = {"model.embed_tokens.weight": (8, 4), "model.layers.0.q_proj.weight": (4, 4), "lm_head.weight": (8, 4)}


@pytest.fixture
def extension(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module as a server has it: a copy beside that of patches.py, which needs vLLM."""
    beside = ModuleType("agentrl_vllm_patches")
    beside.report_unrestricted_logprobs = lambda: None
    monkeypatch.setitem(sys.modules, "agentrl_vllm_patches", beside)
    file = Path(agentrl_vllm.__file__).with_name("extension.py")
    spec = importlib.util.spec_from_file_location("agentrl_vllm_extension", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Runner:
    """Of a model, as far as the extension uses it."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.model, self.loaded = model, []

    def get_model(self) -> torch.nn.Module:
        return self.model

    def reload_weights(self, *, weights_path: str) -> None:
        self.loaded.append(weights_path)


def written(
    folder: Path, shapes: dict[str, tuple[int, ...]], name: str = "model.safetensors", dtype: Any = None
) -> Path:
    folder.mkdir(exist_ok=True)
    save_file({key: torch.zeros(shape, dtype=dtype) for key, shape in shapes.items()}, folder / name)
    return folder


@pytest.fixture
def make(extension: Any, tmp_path: Path) -> Any:
    def build(*, tied: bool = False, model: torch.nn.Module | None = None) -> Any:
        worker = extension.WorkerExtension()
        config = SimpleNamespace(tie_word_embeddings=tied)
        worker.model_config = SimpleNamespace(
            model=str(written(tmp_path / "start", OURS)),
            hf_text_config=config,
            dtype=torch.float32,
            max_model_len=512,
            get_vocab_size=lambda: 8,
            logprobs_mode="processed_logprobs",
            max_logprobs=21,
            skip_tokenizer_init=False,
        )
        worker.vllm_config = SimpleNamespace(
            scheduler_config=SimpleNamespace(max_num_seqs=16, enable_chunked_prefill=False),
            device_config=SimpleNamespace(device_type="cpu"),
        )
        worker.model_runner = Runner(model or torch.nn.Linear(1, 1))
        return worker

    return build


def test_a_worker_tells_what_it_has_loaded(make, tmp_path):
    found = make(tied=True).agentrl_describe()
    assert found == {
        "fault": None,
        "folder": str(tmp_path / "start"),
        "dtype": "float32",
        "tied": True,
        "vocabulary": 8,
        "context": 512,
        "sequences": 16,
        "chunks": False,
        "device": "cpu",
        "logprobs_mode": "processed_logprobs",
        "max_logprobs": 21,
        "text": True,
    }


def test_weights_of_the_same_names_and_shapes_are_taken_in_any_floating_type(make, tmp_path):
    worker = make()
    new = written(tmp_path / "new", OURS, dtype=torch.bfloat16)
    assert worker.agentrl_check(str(new)) == {"fault": None}
    assert worker.model_runner.loaded == []
    assert worker.agentrl_load(str(new)) == {"fault": None}
    assert worker.model_runner.loaded == [str(new)]


def test_several_files_and_their_index_are_one_model(make, tmp_path):
    worker, new = make(), tmp_path / "new"
    names = list(OURS)
    written(new, {name: OURS[name] for name in names[:2]}, "model-1.safetensors")
    written(new, {name: OURS[name] for name in names[2:]}, "model-2.safetensors")
    index = {"weight_map": dict.fromkeys(names, "model-1.safetensors")}
    (new / "model.safetensors.index.json").write_text(json.dumps(index))
    assert worker.agentrl_check(str(new)) == {"fault": None}
    (new / "model-2.safetensors").unlink()
    assert "lacks lm_head.weight, which model.safetensors.index.json lists" in worker.agentrl_check(str(new))["fault"]


def changed(**changes: tuple[int, ...] | None) -> dict[str, tuple[int, ...]]:
    shapes = {**OURS, **{name.replace("__", "."): shape for name, shape in changes.items()}}
    return {name: shape for name, shape in shapes.items() if shape is not None}


@pytest.mark.parametrize(
    ("shapes", "fault"),
    [
        (changed(lm_head__weight=None), "the new weights lack lm_head.weight"),
        (changed(lm_head__weight=(8, 5)), "lm_head.weight is [8, 5] and should be [8, 4]"),
        (changed(model__norm=(4,)), "the model has no model.norm"),
        ({f"layers.{number}": (2,) for number in range(5)}, "the new weights lack lm_head.weight, model.embed_tokens"),
    ],
)
def test_what_does_not_fit_is_named(shapes, fault, make, tmp_path):
    assert fault in make().agentrl_check(str(written(tmp_path / "new", shapes)))["fault"]


def test_a_tied_head_may_be_there_or_not(make, tmp_path):
    new = written(tmp_path / "new", changed(lm_head__weight=None))
    assert make(tied=True).agentrl_check(str(new)) == {"fault": None}


def test_numbers_that_are_not_floating_point_are_refused(make, tmp_path):
    fault = make().agentrl_check(str(written(tmp_path / "new", OURS, dtype=torch.int8)))["fault"]
    assert "is of type I8, not a floating-point number" in fault


@pytest.mark.parametrize("size", [0, 4, 60, -1])
def test_a_file_that_was_cut_short_is_refused(size, make, tmp_path):
    new = written(tmp_path / "new", OURS)
    file = new / "model.safetensors"
    file.write_bytes(file.read_bytes()[:size])
    assert make().agentrl_check(str(new))["fault"]


def test_garbage_and_empty_folders_are_refused(make, tmp_path):
    worker, new = make(), tmp_path / "new"
    assert "is no folder that this server can see" in worker.agentrl_check(str(new))["fault"]
    new.mkdir()
    assert "holds no safetensors file" in worker.agentrl_check(str(new))["fault"]
    (new / "model.safetensors").write_bytes(b"garbage" * 100)
    assert worker.agentrl_check(str(new))["fault"]


def test_what_is_checked_against_is_the_model_that_the_server_started_on(make, tmp_path):
    """A reload makes vLLM believe that it was started on the newer folder, which is removed later."""
    worker, new = make(), written(tmp_path / "new", OURS)
    worker.agentrl_load(str(new))
    worker.model_config.model = str(tmp_path / "removed")
    other = written(tmp_path / "other", changed(lm_head__weight=(8, 5)))
    assert "should be [8, 4]" in worker.agentrl_check(str(other))["fault"]


def test_a_worker_that_cannot_tell_says_why(make):
    worker = make()
    del worker.model_config.max_logprobs
    assert "max_logprobs" in worker.agentrl_describe()["fault"]


def sized(folder: Path, **sizes: Any) -> Path:
    (folder / "config.json").write_text(json.dumps({"hidden_size": 4, "vocab_size": 8, **sizes}))
    return folder


@pytest.mark.parametrize("nested", [False, True])
def test_a_server_started_by_a_name_is_held_against_its_configuration_first(nested, make, tmp_path):
    """And later against what it has loaded."""
    worker, new, other = make(), written(tmp_path / "new", OURS), written(tmp_path / "other", OURS)
    worker.model_config.model = "some/model"
    vars(worker.model_config.hf_text_config).update(hidden_size=4, vocab_size=8, num_hidden_layers=1)
    sized(other, **({"text_config": {"hidden_size": 6}} if nested else {"hidden_size": 6}))
    assert worker.agentrl_check(str(other)) == {"fault": "hidden_size of the new weights is 6 and should be 4"}
    assert worker.agentrl_check(str(sized(new))) == {"fault": None}
    assert worker.agentrl_load(str(new)) == {"fault": None}
    later = sized(written(tmp_path / "later", changed(lm_head__weight=(8, 5))))
    assert "should be [8, 4]" in worker.agentrl_check(str(later))["fault"]


def test_a_worker_that_fails_in_the_middle_ends(make, tmp_path, extension, monkeypatch):
    ended = []
    monkeypatch.setattr(extension.threading, "Timer", lambda *args: SimpleNamespace(start=lambda: ended.append(args)))
    worker = make()

    def fail(**_: str) -> None:
        raise RuntimeError("out of\nmemory")

    worker.model_runner.reload_weights = fail
    assert worker.agentrl_load(str(written(tmp_path / "new", OURS))) == {"fault": "RuntimeError: out of memory"}
    assert [args[1:] for args in ended] == [(extension.os._exit, [1])]


def test_layers_that_share_a_weight_take_it_up_again(make, tmp_path):
    model = torch.nn.ModuleDict({name: torch.nn.Linear(4, 8, bias=False) for name in ("embed", "head", "other")})
    model["head"].weight = model["embed"].weight
    processed = []
    for name, layer in model.items():
        layer.quant_method = SimpleNamespace(process_weights_after_loading=lambda _, name=name: processed.append(name))
    make(tied=True, model=model).agentrl_load(str(written(tmp_path / "new", OURS)))
    assert processed == ["embed", "head"]
