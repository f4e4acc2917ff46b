"""Keeping the memory of tensors that are gone."""

import platform
import subprocess
import sys

import pytest

# How many new pages the system gives to a process for ten blocks that are made and dropped one after the other. Blocks
# of more than 32 MiB are always given back by default. The small ones before make the process ask for memory.
PROGRAM = """
import resource, sys
import torch
from gems_ray.processor import compute_with

if sys.argv[1] == "kept":
    compute_with(1)
small = [torch.ones(1_000) for _ in range(10_000)]
torch.ones(10_000_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    torch.ones(10_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before, torch.get_num_threads())
"""


def new_pages(how):
    done = subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True)
    pages, threads = map(int, done.stdout.split())
    return pages, threads


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told to keep freed memory")
def test_memory_that_was_freed_is_used_again():
    given_back, _ = new_pages("given back")
    kept, threads = new_pages("kept")
    assert threads == 1
    assert kept * 10 < given_back
