"""Devices by name, on machines with and without GPUs."""

import pytest
import torch

from tagrank.cores import cores
from tagrank.errors import InputError
from tagrank.features import devices
from tagrank.features.devices import find_device, in_words


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine without GPUs, whatever this one has."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(devices, "_mps", lambda: False)
    return monkeypatch


def add_gpus(machine: pytest.MonkeyPatch, count: int) -> None:
    machine.setattr(torch.cuda, "is_available", lambda: True)
    machine.setattr(torch.cuda, "device_count", lambda: count)
    machine.setattr(torch.cuda, "get_device_name", lambda device: f"GPU {device.index or 0}")


def test_auto_takes_a_gpu_where_there_is_one(machine: pytest.MonkeyPatch) -> None:
    assert find_device("auto") == torch.device("cpu")
    machine.setattr(devices, "_mps", lambda: True)
    assert find_device("auto") == find_device("mps") == torch.device("mps")
    add_gpus(machine, 1)
    assert find_device("auto") == torch.device("cuda")


def test_devices_by_name(machine: pytest.MonkeyPatch) -> None:
    add_gpus(machine, 2)
    assert find_device("cpu") == find_device(torch.device("cpu")) == torch.device("cpu")
    assert find_device("cuda") == torch.device("cuda")
    assert find_device("cuda:1") == torch.device("cuda", 1)
    assert in_words(find_device("cuda:1")) == "cuda:1 (GPU 1)"
    assert in_words(find_device("cpu")) == "cpu"


@pytest.mark.parametrize(
    ("name", "gpus", "message"),
    [
        ("cuda", 0, "device: cuda: PyTorch sees no NVIDIA GPU here"),
        ("cuda:0", 0, "device: cuda:0: PyTorch sees no NVIDIA GPU here"),
        ("cuda:1", 1, "device: cuda:1: PyTorch sees only cuda:0 here"),
        ("cuda:7", 2, "device: cuda:7: PyTorch sees only cuda:0 to cuda:1 here"),
        ("mps", 1, "device: mps: PyTorch sees no GPU of a Mac here"),
        ("gpu", 1, "device: expected auto, cpu, cuda, cuda:N or mps, got 'gpu'"),
        ("cuda:", 1, "device: expected auto, cpu, cuda, cuda:N or mps, got 'cuda:'"),
        ("cuda:-1", 1, "device: expected auto, cpu, cuda, cuda:N or mps, got 'cuda:-1'"),
        ("", 1, "device: expected auto, cpu, cuda, cuda:N or mps, got ''"),
    ],
)
def test_devices_that_are_not_there(machine: pytest.MonkeyPatch, name: str, gpus: int, message: str) -> None:
    if gpus:
        add_gpus(machine, gpus)
    with pytest.raises(InputError) as error:
        find_device(name)
    assert str(error.value) == message


def test_cores() -> None:
    assert cores() >= 1
