"""Tracing and planning a model of 300 M parameters: within two minutes, and 1.5 times its own size."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

SCRIPT = """
import json, resource, sys, time
sys.path.insert(0, sys.argv[1])
import torch
from torch import nn
import graph_nets as nets
import edgeprune

torch.set_num_threads(1)

class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nets.Attention(True, False, width, heads, width // heads)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.fc2(nn.functional.gelu(self.fc1(self.norm2(x))))

class Vit(nn.Module):
    def __init__(self, width, depth, heads):
        super().__init__()
        self.embed = nn.Conv2d(3, width, 16, 16)
        self.pos = nn.Parameter(torch.zeros(1, 196, width))
        self.blocks = nn.Sequential(*[Block(width, heads) for _ in range(depth)])
        self.head = nn.Linear(width, 1000)
    def forward(self, x):
        return self.head(self.blocks(self.embed(x).flatten(2).transpose(1, 2) + self.pos).mean(1))

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

edgeprune.trace(Vit(8, 1, 2), torch.randn(1, 3, 224, 224)).uniform(0.3)
before = peak()
model = Vit(1024, 24, 16)
size = sum(p.numel() * p.element_size() for p in model.parameters())
used = time.process_time()
structure = edgeprune.trace(model, torch.randn(1, 3, 224, 224))
plan = structure.uniform(0.3, 8)
print(json.dumps({"seconds": time.process_time() - used,
                  "parameters": structure.parameters, "groups": len(structure.groups),
                  "times_size": (peak() - before) / size, "blocks": len(structure.blocks), "cuts": len(plan.cuts)}))
"""


@pytest.mark.slow
def test_a_model_of_300_million_parameters(request: pytest.FixtureRequest) -> None:
    here = str(request.path.parent)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT, here], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["parameters"] > 300e6
    assert found["groups"] == 1 + 2 * 24 and found["blocks"] == 48
    assert found["seconds"] < 120, found
    assert found["times_size"] < 1.5, found
