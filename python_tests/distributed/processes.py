"""Functions run by several processes of one gloo group."""

import os
import sys
import tempfile
import traceback
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

needs_gloo = pytest.mark.skipif(
    sys.platform == "win32" or not dist.is_available() or not dist.is_gloo_available(),
    reason="needs gloo",
)


def run(function, ranks, *args, timeout=20.0, survivors=None):
    """What ``function(rank, *args)`` returns on each rank that survives, all by default; raises
    what one of them raised."""
    survivors = range(ranks) if survivors is None else survivors
    with tempfile.TemporaryDirectory() as folder:
        arguments = function, ranks, folder, timeout, args
        mp.spawn(_process, arguments, nprocs=ranks)
        found = [torch.load(_path(folder, rank), weights_only=False) for rank in survivors]
    for rank, (result, raised) in zip(survivors, found, strict=True):
        assert not raised, f"rank {rank} of {ranks}:\n{raised}{result or ''}"
    return [result for result, _ in found]


def _path(folder, rank):
    return os.path.join(folder, f"result{rank}")


def _process(rank, function, ranks, folder, timeout, args):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meeting",
        rank=rank,
        world_size=ranks,
        timeout=timedelta(seconds=timeout),
    )
    result = raised = None
    try:
        result = function(rank, *args)
    except BaseException:
        raised = traceback.format_exc()
    torch.save((result, raised), _path(folder, rank))
    if raised is None and dist.is_initialized():
        dist.destroy_process_group()
    sys.stdout.flush()
    os._exit(0)  # of a group whose other ranks are gone no thread would end
