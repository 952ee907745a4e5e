"""What the engine asks of this process and of a network."""

import shutil
from functools import partialmethod

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from edkd.training.device import compile_network


class Layers(nn.Module):
    """A family of networks that share a `forward`."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(2, 2) for _ in range(depth))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_a_process_compiles_each_of_many_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend="eager"))  # saves minutes
    monkeypatch.setattr(torch._dynamo.config, "recompile_limit", 8)
    torch.compiler.reset()
    before = counters["stats"]["unique_graphs"]
    for depth in range(1, 6):
        network = Layers(depth)
        compile_network(network, torch.device("cpu"))
        for batch in (3, 4):
            network.train()(torch.ones(batch, 2))
        network.eval()(torch.ones(5, 2))
    assert counters["stats"]["unique_graphs"] - before == 5 * 3
