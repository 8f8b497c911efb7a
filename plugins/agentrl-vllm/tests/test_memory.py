"""What a worker holds is read from what it computes with, under the names and in the shapes of the model folder."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from agentrl import tensor_digest
from agentrl_vllm.memory import Unreadable, held_tensors, stored_tensors, with_signs_of

HIDDEN, VOCABULARY, PADDED = 6, 10, 16
Q, KV = 8, 4


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


class Layer(torch.nn.Module):
    """As one of vLLM's: its weight, the sizes that it was joined from, and, on a CPU, a kernel that has packed it."""

    def __init__(self, weight: torch.Tensor, sizes: list[int], *, whole: int | None = None, **more: Any) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(weight, requires_grad=False)
        self.output_partition_sizes, self.output_size = sizes, whole or sum(sizes)
        self.input_size = self.input_size_per_partition = weight.shape[1]
        vars(self).update(more)

    def pack(self, *, forget: bool = True) -> Layer:
        kernel = self.weight.detach().clone()
        self.cpu_linear = lambda x: x @ kernel.T
        self.quant_method = SimpleNamespace(apply=lambda layer, x, bias: layer.cpu_linear(x))
        if forget:
            self.weight = torch.nn.Parameter(torch.empty(0, dtype=kernel.dtype), requires_grad=False)
        return self


def vocabulary(weight: torch.Tensor) -> Layer:
    padded = torch.cat([weight, torch.zeros(PADDED - VOCABULARY, HIDDEN, dtype=weight.dtype)])
    return Layer(padded, [PADDED], org_vocab_size=VOCABULARY, tp_size=1, embedding_dim=HIDDEN)


def folder_of(dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """A model as its folder has it."""
    sizes = {"q_proj": Q, "k_proj": KV, "v_proj": KV}
    tensors = {f"layers.0.attn.{name}.weight": numbers(size, HIDDEN, seed=ord(name[0])) for name, size in sizes.items()}
    tensors["layers.0.attn.o_proj.weight"] = numbers(HIDDEN, Q)
    tensors["layers.0.norm.weight"] = numbers(HIDDEN)
    tensors["embed_tokens.weight"] = numbers(VOCABULARY, HIDDEN)
    tensors["lm_head.weight"] = numbers(VOCABULARY, HIDDEN, seed=1)
    return {name: tensor.to(dtype) for name, tensor in tensors.items()}


def model_of(tensors: dict[str, torch.Tensor], *, packed: bool = False, tied: bool = False) -> torch.nn.Module:
    """The same model as vLLM has it."""
    attention, layer, model = torch.nn.Module(), torch.nn.Module(), torch.nn.Module()
    joined = torch.cat([tensors[f"layers.0.attn.{name}.weight"] for name in ("q_proj", "k_proj", "v_proj")])
    attention.qkv_proj = Layer(joined, [Q, KV, KV])
    attention.o_proj = Layer(tensors["layers.0.attn.o_proj.weight"], [HIDDEN])
    layer.attn = attention
    layer.norm = torch.nn.Module()
    layer.norm.weight = torch.nn.Parameter(tensors["layers.0.norm.weight"], requires_grad=False)
    model.layers = torch.nn.ModuleList([layer])
    model.embed_tokens = vocabulary(tensors["embed_tokens.weight"])
    model.lm_head = vocabulary(tensors["lm_head.weight"])
    if tied:
        model.lm_head.weight = model.embed_tokens.weight
    if packed:
        attention.qkv_proj.pack()
        attention.o_proj.pack()
        for head in (model.embed_tokens, model.lm_head):
            head.pack(forget=False)
    model.packed_modules_mapping = {"qkv_proj": ["q_proj", "k_proj", "v_proj"]}
    return model


def read(model: torch.nn.Module, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
    return {held.name: held.tensor for held in held_tensors(model, shapes)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("packed", [False, True])
def test_tensors_are_bit_for_bit_those_that_were_loaded(packed: bool, dtype: torch.dtype) -> None:
    tensors = folder_of(dtype)
    found = read(model_of(tensors, packed=packed), tensors)
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert tensor_digest(found[name]) == tensor_digest(tensor), name


def test_what_is_packed_is_read_from_the_kernel_and_not_from_the_weight_beside_it() -> None:
    tensors = folder_of()
    model = model_of(tensors, packed=True)
    model.lm_head.weight.data.add_(1)
    assert torch.equal(read(model, tensors)["lm_head.weight"], tensors["lm_head.weight"])
    model.embed_tokens.weight.data.add_(1)
    assert torch.equal(read(model, tensors)["embed_tokens.weight"], tensors["embed_tokens.weight"] + 1), "it looks up"


@pytest.mark.parametrize("packed", [False, True])
def test_a_tied_head_is_told_of_once_unless_there_is_a_copy_of_it(packed: bool) -> None:
    tensors = folder_of()
    del tensors["lm_head.weight"]
    model = model_of({**tensors, "lm_head.weight": tensors["embed_tokens.weight"]}, packed=packed, tied=True)
    found = {held.name: held for held in held_tensors(model, {name: each.shape for name, each in tensors.items()})}
    assert ("lm_head.weight" in found) is packed
    if packed:
        assert found["lm_head.weight"].tied_to == "embed_tokens.weight"
        model.embed_tokens.weight.data.add_(1)
        changed = read(model, tensors)
        assert not torch.equal(changed["lm_head.weight"], changed["embed_tokens.weight"]), "the old head hides"


def test_the_sign_of_a_zero_is_taken_from_where_it_is_left() -> None:
    plain = torch.tensor([0.0, -0.0, 2.0, -3.0])
    read_back = torch.tensor([0.0, 0.0, 2.0, -3.0])
    assert tensor_digest(read_back) != tensor_digest(plain)
    assert tensor_digest(with_signs_of(read_back, plain)) == tensor_digest(plain)
    assert torch.equal(with_signs_of(read_back, plain + 1), read_back), "other numbers are none of its signs"


def test_what_the_folder_does_not_know_is_no_guess() -> None:
    tensors = folder_of()
    model = model_of(tensors)
    del tensors["layers.0.norm.weight"]
    with pytest.raises(Unreadable, match=r"it holds layers\.0\.norm\.weight, which the model folder does not have"):
        read(model, tensors)
    tensors["layers.0.norm.weight"] = numbers(HIDDEN + 1)
    with pytest.raises(Unreadable, match=r"as \[6\], and the model folder as \[7\]"):
        read(model, tensors)


class Mapper:
    """vLLM has the tensors under other names."""

    def map_name(self, name: str) -> str | None:
        return None if name == "rotary" else name.replace("model.language.", "")


def test_names_are_those_of_the_folder_where_vllm_has_its_own() -> None:
    tensors = folder_of()
    model = model_of(tensors)
    model.hf_to_vllm_mapper = Mapper()
    ours = {f"model.language.{name}": tensor for name, tensor in tensors.items()}
    found = read(model, {**ours, "rotary": numbers(2)})
    assert found.keys() == ours.keys()


@pytest.mark.parametrize("copies", [1, 2])
def test_parts_of_several_workers_are_put_together(copies: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two workers have a half each; of keys and values, where there is but one head, both have the same."""
    tensors = folder_of()
    halves = {name: tensor.chunk(2) for name, tensor in tensors.items()}
    for name in ("layers.0.attn.k_proj.weight", "layers.0.attn.v_proj.weight"):
        halves[name] = halves[name] if copies == 1 else (tensors[name], tensors[name])
    halves["layers.0.attn.o_proj.weight"] = tensors["layers.0.attn.o_proj.weight"].chunk(2, dim=1)

    def gather(part: torch.Tensor, dimension: int) -> torch.Tensor:
        (other,) = (pair[1] for pair in halves.values() if torch.equal(pair[0], part))
        return torch.cat([part, other], dimension)

    distributed = ModuleType("vllm.distributed")
    distributed.tensor_model_parallel_all_gather = gather  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", ModuleType("vllm"))
    monkeypatch.setitem(sys.modules, "vllm.distributed", distributed)
    model = torch.nn.Module()
    names = ("q_proj", "k_proj", "v_proj")
    parts = [halves[f"layers.0.attn.{name}.weight"][0] for name in names]
    attention = torch.nn.Module()
    sizes = [len(part) for part in parts]
    attention.qkv_proj = Layer(torch.cat(parts), sizes, whole=2 * sum(sizes), num_kv_head_replicas=copies)
    attention.o_proj = Layer(halves["layers.0.attn.o_proj.weight"][0], [HIDDEN])
    attention.o_proj.input_size = Q
    layer = torch.nn.Module()
    layer.attn = attention
    model.layers = torch.nn.ModuleList([layer])
    model.lm_head = Layer(
        halves["lm_head.weight"][0], [VOCABULARY // 2], whole=VOCABULARY, org_vocab_size=VOCABULARY, tp_size=2
    )
    model.packed_modules_mapping = {"qkv_proj": list(names)}
    found = read(model, tensors)
    assert len(found) == 5
    assert all(torch.equal(found[name], tensors[name]) for name in found)


def test_tensors_of_several_files_are_read_by_name(tmp_path: Any) -> None:
    tensors = folder_of()
    for number, (name, tensor) in enumerate(tensors.items()):
        save_file({name: tensor}, tmp_path / f"model-{number}.safetensors")
    stored = stored_tensors(tmp_path)
    assert stored.keys() == tensors.keys()
    assert all(torch.equal(stored[name](), tensor) for name, tensor in tensors.items())
