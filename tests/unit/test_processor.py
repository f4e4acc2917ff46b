"""Keeping the memory of tensors that are gone."""

import platform
import subprocess
import sys

import pytest

# How many new pages the system gives to a process for ten updates of a network, after twenty others.
PROGRAM = """
import resource, sys
import torch
from gems_ray.processor import compute_with

torch.set_num_threads(1)
if sys.argv[1] == "kept":
    compute_with(1)
weights = torch.randn(300, 1000, requires_grad=True), torch.randn(1000, 1000, requires_grad=True)
rows = torch.randn(2500, 300)

def update():
    ((rows @ weights[0]).relu() @ weights[1]).logsumexp(dim=1).mean().backward()
    for weight in weights:
        weight.grad = None

for _ in range(20):
    update()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    update()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def new_pages(how):
    done = subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told to keep freed memory")
def test_memory_that_was_freed_is_used_again():
    assert new_pages("kept") * 4 < new_pages("given back")
