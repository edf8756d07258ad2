"""Ranks that disagree, that die and that are late: an error on every other one, never a hang."""

import os
import time
from contextlib import nullcontext

import pytest
import torch
import torch.distributed as dist

import cl_kernels as cl
from cl_kernels import PairFilter
from python_tests.distributed.cases import Data
from python_tests.distributed.processes import needs_gloo, run

pytestmark = needs_gloo

BOTH = ("all", "ring")


def clip(x, **options):
    return cl.clip(x.first, x.second, x.scale, normalize=True, **options)


def calls(rank, x, gather):
    """By the argument that the error names: a call that is another one on rank 1."""
    odd = rank == 1
    narrow, half = x.first[:, :5], x.first.detach().half()
    wider = torch.cat((x.others, x.others), 1)
    ids = PairFilter(x.labels, x.labels, "same" if odd else "different")
    options = {"gather": gather}
    yield "image_features", lambda: cl.clip(narrow if odd else x.first, x.second, 3.0, **options)
    yield "image_features", lambda: cl.clip(half if odd else x.first, x.second, 3.0, **options)
    yield (
        "image_features",
        lambda: cl.clip(x.first.detach() if odd else x.first, x.second, 3.0, **options),
    )
    yield "image_features", lambda: cl.clip([1.0] if odd else x.first, x.second, 3.0, **options)
    yield "logit_scale", lambda: cl.clip(x.first, x.second, 2.0 + rank, **options)
    yield "where", lambda: clip(x, where=ids, **options)
    yield "where", lambda: clip(x, where=(ids, ids) if odd else ids, **options)
    yield "reduction", lambda: clip(x, reduction="sum" if odd else "mean", **options)
    yield "weights", lambda: clip(x, weights=x.numbers if odd else None, **options)
    yield (
        "negative_keys",
        lambda: cl.info_nce(
            x.first, x.second, wider if odd else x.others, in_batch_negatives=True, **options
        ),
    )
    yield (
        "negative_keys",
        lambda: cl.nt_xent(x.first, x.second, negative_keys=x.queue[: 9 - rank], **options),
    )
    yield (
        ("info_nce" if odd else "nt_xent"),
        lambda: (cl.info_nce if odd else cl.nt_xent)(x.first, x.second, temperature=0.5, **options),
    )
    if gather == "all":  # each rank says what is wrong with its own, the others that one is
        yield (
            "target",
            lambda: cl.info_nce(
                x.first, x.second, target=[[99]] if odd else [[0]] * len(x.first), **options
            ),
        )
        yield "where", lambda: clip(x, where="no filter" if odd else (), **options)


def own_mistakes(rank, x, gather):
    """What rank 1 alone gets wrong: it says so itself, the others say that a rank has."""
    odd, N = rank == 1, len(x.first)
    few = x.second[: N - 1] if odd else x.second
    short = x.numbers[: N - 1] if odd else x.numbers
    ids = x.labels[: N - 1] if odd else x.labels
    options = {"gather": gather}
    yield lambda: cl.clip(x.first, few, 3.0, **options)
    yield lambda: cl.negative_cosine(x.first, few, **options)
    yield lambda: clip(x, weights=short, **options)
    yield lambda: clip(x, weights=-x.numbers if odd else x.numbers, **options)
    yield lambda: clip(x, where=PairFilter(ids, ids, "different"), **options)
    yield lambda: cl.arcface(x.first, x.labels + 9 * rank, x.weight, reduction="none", **options)
    yield lambda: cl.info_nce(x.first, None if odd else x.second, **options)
    yield lambda: clip(x, target=torch.arange(N) if odd else None, **options)
    target = torch.arange(N) + (3 if odd else 0)
    yield lambda: cl.info_nce(x.first, x.second, target=target, **options)
    yield lambda: cl.info_nce(x.first, None if odd else x.second, target=target, **options)
    swapped = x.weight.flip(0) if odd else x.weight
    yield lambda: cl.proxy_anchor(x.first, x.labels, swapped, **options)
    yield lambda: cl.proxy_anchor(x.first, x.labels + 9 * rank, x.weight, **options)
    yield lambda: cl.supcon(x.first, ids, **options)
    yield lambda: cl.triplet(x.first * (torch.inf if odd else 1), x.labels, **options)
    yield lambda: cl.cosent(x.first, x.second, x.numbers * (torch.nan if odd else 1), **options)
    yield lambda: cl.distill(x.first, few, x.first.detach(), x.second, **options)
    yield lambda: cl.vicreg(x.first, few, **options)
    wrong, queue_ids = [[99 if odd else 0]] * N, torch.arange(9 - odd)
    where = PairFilter(x.labels, queue_ids, "different")
    for reduction in ("mean", "sum", "none"):  # none of these sees other ranks' rows
        given = options | {"reduction": reduction}
        yield lambda o=given: cl.supcon(x.first, ids, x.queue, torch.arange(9), **o)
        alone = given | {"in_batch_negatives": False}
        yield lambda o=alone: cl.info_nce(x.first, x.second, x.queue, target=wrong, **o)
        yield lambda o=given: cl.info_nce(
            x.first, x.second, x.queue, in_batch_negatives=True, negative_where=where, **o
        )
    sparse = x.queue.to_sparse() if odd else x.queue
    yield lambda: cl.info_nce(x.first, x.second, sparse, **options)
    flag = torch.tensor([True, False]) if odd else True
    yield lambda: cl.info_nce(x.first, x.second, x.queue, in_batch_negatives=flag, **options)
    yield lambda: cl.gist(x.first, x.second, x.first, x.second, guide_scores=short, **options)
    if gather == "all":
        other_queue = PairFilter(x.labels, torch.arange(9) + rank, "different")
        yield lambda: cl.info_nce(
            x.first, x.second, x.queue, in_batch_negatives=True, negative_where=other_queue,
            **options,
        )  # fmt: skip


def swapped_numbers(rank):
    """Rows of one rank that do not belong together, though there are as many in all."""
    n, m = ((4, 6), (6, 4))[rank]
    data = Data.random([6, 6])
    x = data.of(rank)
    first, second, labels, numbers = x.first[:n], x.second[:m], x.labels[:m], x.numbers[:m]
    for call in (
        lambda: cl.info_nce(first, second, gather="all"),
        lambda: cl.clip(first, second, 3.0, gather="all"),
        lambda: cl.nt_xent(first, second, gather="all"),
        lambda: cl.supcon(first, labels, gather="all"),
        lambda: cl.cosent(first, x.second[:n], numbers, gather="all"),
        lambda: clip(x._replace(first=first, second=x.second[:n]), weights=numbers, gather="all"),
    ):
        with pytest.raises(ValueError, match="expected as many rows as"):
            call()
    target = torch.zeros(n, dtype=torch.int64)
    cl.info_nce(first, second, target=target, gather="all")  # keys of another number
    short = x.second[: len(x.second) - rank]
    with pytest.raises(ValueError, match=r"rows of each rank: .* \[6, 6\], .* \[6, 5\]"):
        cl.clip(x.first, short, 3.0, gather="all")


def disagreeing(rank):
    x = Data.random([4, 6]).of(rank)
    for gather in BOTH:
        for named, call in calls(rank, x, gather):
            with pytest.raises((TypeError, ValueError), match=f"^{named}") as caught:
                call()
            assert "rank" in str(caught.value) or rank == 1, caught.value
            assert x.first.grad is None
        for call in own_mistakes(rank, x, gather):
            with pytest.raises((TypeError, ValueError)):
                call()
        with torch.no_grad() if rank else nullcontext(), pytest.raises(ValueError, match="grad"):
            clip(x, gather=gather)
        autocast = torch.autocast("cpu", torch.bfloat16, enabled=rank == 1)
        with autocast, pytest.raises(ValueError, match="autocast"):
            clip(x, gather=gather)
        with pytest.raises(ValueError, match="gather"):
            clip(x, gather=BOTH[rank])
        nothing = clip(x, weights=torch.zeros(len(x.first)), gather=gather)
        (1024 * nothing).backward()
        assert nothing == 0 and not x.first.grad.any()
        x.first.grad = x.second.grad = x.scale.grad = None
        cl.info_nce(x.first, x.second, x.queue + rank, gather=gather)  # a queue of its own
        clip(x, gather=gather).backward()  # the group is as good as before
        x.first.grad = x.second.grad = x.scale.grad = None


def test_ranks_that_disagree():
    run(disagreeing, 2)


def test_rows_that_do_not_belong_together():
    run(swapped_numbers, 2)


def wrong_on_all(rank):
    """What every rank finds wrong alike is told as in one process."""
    x = Data.random([4, 6]).of(rank)
    for gather in BOTH:
        with pytest.raises(ValueError, match="temperature: expected"):
            cl.info_nce(x.first, x.second, temperature=0.0, gather=gather)
    group = dist.new_group()
    dist.destroy_process_group(group)
    for gather in BOTH:
        with pytest.raises(ValueError, match="group: expected a living one"):
            clip(x, gather=gather, group=group)


def test_arguments_that_are_wrong_everywhere():
    run(wrong_on_all, 2)


def dying(rank, gather):
    x = Data.random([4, 6, 5]).of(rank)
    loss = clip(x, gather=gather)
    if rank == 1:
        os._exit(0)
    started = time.monotonic()
    with pytest.raises(RuntimeError, match="waited for the others in vain"):
        loss.backward()
        clip(x, gather=gather)
    assert time.monotonic() - started < 20


def late(rank, gather):
    x = Data.random([4, 6]).of(rank)
    clip(x, gather=gather)
    if rank == 1:
        time.sleep(6)
        with pytest.raises(RuntimeError):
            clip(x, gather=gather)
        return
    started = time.monotonic()
    with pytest.raises(RuntimeError, match="waited for the others in vain"):
        clip(x, gather=gather)
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("gather", BOTH)
def test_a_rank_that_dies(gather):
    run(dying, 3, gather, survivors=(0, 2))


def test_a_rank_that_is_late():
    run(late, 2, "all", timeout=2.0)
