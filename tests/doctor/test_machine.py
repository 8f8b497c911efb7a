"""What the machine has, as its own files and programs say it."""

from __future__ import annotations

import os
import sys
from types import SimpleNamespace

import psutil
import pynvml
import pytest

from agentrl.config import load_config
from agentrl.doctor.machine import Gpu, Gpus, _existing_parent, _processes, gpu_findings, nvidia_gpus
from agentrl.doctor.model import model_size
from agentrl.machine import free_memory, human, usable_processors

CONFIG = load_config(environ={})
CPU_BUILD = Gpus(torch="2.13.0+cpu")


def write(folder, **files):
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("_", ".", 1)).write_text(text)
    return folder


@pytest.fixture
def available(monkeypatch):
    """Three gigabytes, as psutil reads the machine's files."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=3_000_000_000))
    return 3_000_000_000


def test_free_memory_is_that_of_the_machine_or_what_its_container_leaves(tmp_path, available):
    assert free_memory(tmp_path / "none") == (available, True)
    unlimited = write(tmp_path / "a", memory_max="max\n", memory_current="5000\n")
    assert free_memory(unlimited) == (available, True)
    limited = write(
        tmp_path / "b", memory_max="1000000\n", memory_current="700000\n", memory_stat="anon 1\ninactive_file 50\n"
    )
    assert free_memory(limited) == (300_050, True)


def test_free_memory_is_less_than_all_of_it(tmp_path):
    free, known = free_memory(tmp_path / "none")
    assert known
    assert 0 < free < psutil.virtual_memory().total


def test_without_psutil_all_memory_counts(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "psutil", None)
    assert free_memory(tmp_path / "none") == (os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), False)


def test_a_containers_share_of_the_processors_counts(tmp_path):
    everything = usable_processors(tmp_path / "none")
    assert usable_processors(write(tmp_path / "a", cpu_max="max 100000\n")) == everything
    assert usable_processors(write(tmp_path / "b", cpu_max="100000 100000\n")) == 1
    assert usable_processors(write(tmp_path / "c", cpu_max="10000 100000\n")) == 1


@pytest.mark.parametrize(("size", "said"), [(999, "999 B"), (1500, "1.5 KB"), (7.1e9, "7.1 GB"), (2e13, "20.0 TB")])
def test_sizes_are_readable(size, said):
    assert human(size) == said


def test_the_nearest_folder_that_exists_is_found(tmp_path):
    assert _existing_parent(tmp_path / "a" / "b") == tmp_path


def test_the_size_of_a_model_is_that_of_its_parameters(tiny_folder):
    size = model_size(tiny_folder)
    # The file of float32 weights is a header longer than they are.
    assert 0 < (tiny_folder / "model.safetensors").stat().st_size - 4 * size.parameters < 50_000
    assert size.learner_bytes() == 16 * size.parameters
    assert size.context_length == 1024


def test_a_model_that_memory_cannot_hold_is_told_before_it_is_loaded(examined, monkeypatch):
    monkeypatch.setattr("agentrl.doctor.machine.free_memory", lambda: (5_000_000, True))
    result = examined("math")
    problem = result.only("problem", "machine")
    assert problem.text.startswith("training takes about ")
    assert "of the 5.0 MB of memory that are free" in problem.text
    assert "learner: loading the model" not in result.told.activities
    assert result.levels()["learner"] == {"skipped"}


def test_a_full_disk_and_idle_gpu_are_warnings(examined, monkeypatch):
    monkeypatch.setattr("agentrl.doctor.machine.free_disk", lambda folder: 1000)
    assert "raise training.checkpoint_every" in examined("math").only("warning", "machine").fix


class Driver:
    """Stands for the module ``pynvml`` on a machine whose driver knows two GPUs."""

    NVMLError = pynvml.NVMLError
    names = ("NVIDIA H100 80GB HBM3", "NVIDIA H100 NVL")

    def __init__(self):
        self.running = False
        self.fails = False

    def nvmlInit(self):
        self.running = True

    def nvmlShutdown(self):
        assert self.running
        self.running = False

    def nvmlSystemGetDriverVersion(self):
        assert self.running
        return "570.86.15"

    def nvmlDeviceGetCount(self):
        if self.fails:
            raise self.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)
        return len(self.names)

    def nvmlDeviceGetHandleByIndex(self, index):
        return ("handle", index)

    def nvmlDeviceGetName(self, handle):
        return self.names[handle[1]]


@pytest.fixture
def driver(monkeypatch):
    """A machine with GPUs that torch cannot use."""
    driver = Driver()
    monkeypatch.setitem(sys.modules, "pynvml", driver)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    return driver


def test_a_gpu_that_a_cpu_build_of_torch_leaves_idle_is_a_warning(examined, driver, monkeypatch):
    monkeypatch.setattr("torch.version.cuda", None)
    warning = examined("math").only("warning", "machine")
    assert warning.text.startswith("NVIDIA H100 80GB HBM3, driver 570.86.15, is there, but torch ")
    assert warning.figures["present"] == [f"{name}, driver 570.86.15" for name in Driver.names]
    assert not driver.running


def test_a_driver_that_cannot_be_asked_is_none(driver):
    driver.fails = True
    assert Gpus.seen().present == ()
    assert not driver.running


def test_without_a_driver_or_the_package_that_asks_it_there_is_no_gpu(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)

    def fail(*_):
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", fail)
    assert Gpus.seen().present == ()
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert Gpus.seen().present == ()


def test_the_real_driver_says_what_the_machine_has():
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        assert Gpus.seen().usable == Gpus.seen().present == ()
        return
    pynvml.nvmlShutdown()
    assert all(", driver " in gpu for gpu in nvidia_gpus())


H100 = ("NVIDIA H100, driver 570.86",)
SEEN = Gpu("NVIDIA H100", 70_000_000_000, 80_000_000_000)


@pytest.mark.parametrize(
    ("gpus", "level", "said", "fix"),
    [
        (CPU_BUILD, "note", "no GPU: models are trained and sampled on the CPU", None),
        (Gpus(torch="2.13.0", apple=True), "note", "the Apple GPU (MPS) is not used", None),
        (Gpus(torch="2.13.0+cpu", present=H100), "warning", "is a build for the CPU", "CUDA build of torch"),
        (
            Gpus(torch="2.13.0", cuda="13.0", present=H100, complaint="The NVIDIA driver on your system is too old"),
            "warning",
            "built for CUDA 13.0, cannot use it (The NVIDIA driver on your system is too old)",
            "update the driver, or install a torch that was built for an older CUDA than 13.0",
        ),
        (Gpus(torch="2.13.0", cuda="13.0", usable=(SEEN,)), "ok", "GPU 0: NVIDIA H100, 70.0 GB of 80.0 GB free", None),
    ],
)
def test_each_state_of_a_gpu_has_its_words(gpus, level, said, fix):
    (finding,) = gpu_findings(gpus, CONFIG)
    assert finding.level == level
    assert said in finding.text
    assert finding.fix is None if fix is None else fix in finding.fix


def test_a_gpu_that_is_hidden_is_told_by_what_hides_it(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    (finding,) = gpu_findings(Gpus(torch="2.13.0", cuda="13.0", present=H100), CONFIG)
    assert finding.fix == "unset CUDA_VISIBLE_DEVICES"


def test_a_gpu_that_the_config_leaves_idle_is_a_warning():
    config = load_config(None, "training.device=cpu", environ={})
    levels = [finding.level for finding in gpu_findings(Gpus(torch="2.13.0", cuda="13.0", usable=(SEEN,)), config)]
    assert levels == ["ok", "warning"]


def test_processes_have_a_place_or_the_reason_why_not():
    assert list(_processes(CONFIG)) == []
    (found,) = _processes(load_config(None, "training.processes=2", "training.device=cpu", environ={}))
    assert (found.level, found.figures) == ("ok", {"processes": 2})
    assert "2 processes of this machine train the model" in found.text
    (found,) = _processes(load_config(None, "training.processes=2", "training.device=cuda:0", environ={}))
    assert found.level == "problem"
    assert "training.device=cuda:0 is one GPU" in found.text
    assert "set training.device=cuda" in found.fix
