"""What devices are worth, and packages that are kept away."""

import importlib
import sys
import types

import pytest
import torch

from cft_ray.training import hardware, hidden


@pytest.mark.parametrize(
    ("name", "flops"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA H100 PCIe", 756e12), ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA B200", 2250e12), ("NVIDIA A10G", 70e12), ("NVIDIA L4", 121e12), ("NVIDIA L40S", 362e12), ("NVIDIA T4", 0.0),
        ("NVIDIA H200", 989e12),
    ],
)  # fmt: skip
def test_peak_operations_by_name(monkeypatch, name, flops):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert hardware.peak_flops(torch.device("cuda", 0)) == flops
    assert hardware.peak_flops(torch.device("cpu")) == 0.0


def test_operations_and_memory(monkeypatch):
    assert hardware.flops_per_token(1000, 2, 10, 50.0) == 6 * 1000 + 6 * 2 * 10 * 50
    monkeypatch.setattr(hardware.resource, "getrusage", lambda who: types.SimpleNamespace(ru_maxrss=7))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 11)
    for platform, found in (("linux", 7 * 1024), ("darwin", 7)):
        monkeypatch.setattr(hardware.sys, "platform", platform)
        assert hardware.peak_memory(torch.device("cpu")) == found
    assert hardware.peak_memory(torch.device("cuda", 0)) == 11


def test_packages_that_nobody_wants_cannot_be_imported_meanwhile(monkeypatch):
    monkeypatch.delitem(sys.modules, "no_such_package_here", raising=False)
    with hidden("no_such_package_here", "json"):
        assert importlib.import_module("json") is sys.modules["json"] is not None
        with pytest.raises(ImportError):
            importlib.import_module("no_such_package_here")
    assert "no_such_package_here" not in sys.modules and "json" in sys.modules
