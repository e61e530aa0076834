"""The generators start where torch.manual_seed starts them, on every device that there is."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from sslinfo.seeding import seed_generators


@pytest.mark.parametrize("seed", [0, 1, 2**40 + 3, 2**63 - 1])
def test_numbers_are_those_of_torchs_own_function(seed: int) -> None:
    torch.manual_seed(seed)
    expected = torch.randn(5), torch.randperm(9)
    seed_generators(seed)
    assert torch.equal(torch.randn(5), expected[0])
    assert torch.equal(torch.randperm(9), expected[1])


@pytest.mark.parametrize("functions", [["manual_seed"], ["manual_seed", "manual_seed_all"]])
def test_the_accelerator_is_seeded_too(monkeypatch: pytest.MonkeyPatch, functions: list[str]) -> None:
    seeds: list[tuple[str, int]] = []
    device = SimpleNamespace(**{name: lambda seed, name=name: seeds.append((name, seed)) for name in functions})
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch, "get_device_module", lambda accelerator: {"cuda": device}[accelerator.type])
    seed_generators(11)
    assert seeds == [(functions[-1], 11)]  # of several devices, all


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: its generator is not checked")
def test_a_gpus_numbers_are_those_of_torchs_own_function() -> None:
    torch.manual_seed(5)
    expected = torch.randn(4, device="cuda")
    seed_generators(5)
    assert torch.equal(torch.randn(4, device="cuda"), expected)
