"""Calls over several processes in contexts that are not a plain training step."""

import copy
import threading

import pytest
import torch
import torch.distributed as dist
from torch.utils.checkpoint import checkpoint

import cl_kernels as cl
from python_tests.distributed.cases import CASES, QUEUE, Data
from python_tests.distributed.processes import needs_gloo, run

pytestmark = needs_gloo

BOTH = ("all", "ring")
SIZES = [5, 8]


class Ranks:
    """A rank's data, and what one process with all of it finds."""

    def __init__(self, rank):
        self.rank, self.data = rank, Data.random(SIZES)
        self.mine = self.data.of(rank)

    def own(self, x):
        return x[self.data.rows_of(self.rank)]

    def assert_gradient(self, got, exact, factor=1.0):
        torch.testing.assert_close(got.grad / len(SIZES), factor * self.own(exact.grad))


def the_same_tensor_twice(r, gather):
    for loss in (
        lambda z, **o: cl.clip(z, z, 3.0, normalize=True, **o),
        lambda z, **o: cl.info_nce(z, z, temperature=0.4, **o),
        lambda z, **o: cl.nt_xent(z, z, 0.4, **o),
    ):
        whole, mine = r.data.with_leaves().first, r.data.of(r.rank).first
        loss(whole).backward()
        loss(mine, gather=gather).backward()
        r.assert_gradient(mine, whole)


def the_same_tensor_twice_on_one_rank(r, gather):
    """Embeddings as queries and keys, and ids of both sides."""

    def call(z, ids, once, **options):
        again, other = (z, ids) if once else (z.clone(), ids.clone())
        where = cl.PairFilter(ids, other, "different")
        twice = torch.cat([ids, ids])
        of_views = cl.PairFilter(twice, twice if once else twice.clone(), "different")
        return (
            cl.clip(z, again, 3.0, normalize=True, where=where, **options)
            + cl.nt_xent(z, again, 0.4, where=of_views, **options)
            + cl.info_nce(z, again, temperature=0.4, **options)
        )

    ids = torch.arange(sum(SIZES)) // 2
    whole, mine = r.data.with_leaves().first, r.data.of(r.rank).first
    exact = call(whole, ids, True)
    exact.backward()
    found = call(mine, r.own(ids), r.rank == 0, gather=gather)
    torch.testing.assert_close(found, exact)
    found.backward()
    r.assert_gradient(mine, whole)


def several_backward_passes(r, gather):
    whole, mine = r.data.with_leaves(), r.data.of(r.rank)
    CASES["clip"].call(whole).backward()
    loss = CASES["clip"].call(mine, gather=gather)
    loss.backward(retain_graph=True)
    (2 * loss).backward()
    r.assert_gradient(mine.first, whole.first, 3.0)


def a_second_backward_is_refused(r, gather):
    """Through the gradients: none of these is what it is on one process."""
    for name in ("clip", "vicreg", "barlow_twins", "cosent", "supcon", "proxy_anchor"):
        mine = r.data.of(r.rank)
        loss = CASES[name].call(mine, gather=gather)
        with pytest.raises(RuntimeError, match="double backward"):
            torch.autograd.grad(loss, mine.first, create_graph=True)


def another_thread(r, gather):
    """Forward in one, backward in another."""
    whole, mine, found = r.data.with_leaves(), r.data.of(r.rank), []
    CASES["nt_xent"].call(whole).backward()
    for step in (
        lambda: found.append(CASES["nt_xent"].call(mine, gather=gather)),
        lambda: found[0].backward(),
    ):
        thread = threading.Thread(target=step)
        thread.start()
        thread.join()
    r.assert_gradient(mine.first, whole.first)


def no_gradient(r, gather):
    whole = CASES["siglip"].call(r.data)
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            torch.testing.assert_close(CASES["siglip"].call(r.mine, gather=gather), whole)


def checkpointed(r, gather):
    whole, mine = r.data.with_leaves(), r.data.of(r.rank)
    CASES["info_nce"].call(whole).backward()

    def loss(first):
        return CASES["info_nce"].call(mine._replace(first=first), gather=gather)

    checkpoint(loss, mine.first, use_reentrant=False).backward()
    r.assert_gradient(mine.first, whole.first)


def factors_that_differ(r, gather):
    """DDP takes the mean of what ranks make of the loss."""
    whole, mine = r.data.with_leaves(), r.data.of(r.rank)
    CASES["clip"].call(whole).backward()
    (CASES["clip"].call(mine, gather=gather) * (1 + 2 * r.rank)).backward()
    r.assert_gradient(mine.first, whole.first, 2.0)


def changed_before_backward(r, gather):
    """What was gathered is a copy, and a total's gradients are made with it; what rows' losses in
    a ring are made of is watched."""
    whole, mine = r.data.with_leaves(), r.data.of(r.rank)
    CASES["clip"].call(whole).backward()

    def changed(**options):
        given = mine._replace(first=mine.first * 1)
        loss = CASES["clip"].call(given, gather=gather, **options)
        given.first.data[0] = 9.0  # of the same storage, unseen by autograd
        with torch.no_grad():
            given.first.add_(1)
        return loss

    changed().backward()
    r.assert_gradient(mine.second, whole.second)
    if gather == "ring":
        losses = changed(reduction="none")
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            losses.sum().backward()


def under_autocast(r, gather):
    data = Data.random(SIZES, torch.float32)
    mine = data.of(r.rank)
    with torch.autocast("cpu", torch.bfloat16):
        whole = CASES["clip"].call(data)
        found = CASES["clip"].call(mine, gather=gather)
        found.backward()
    torch.testing.assert_close(found, whole, rtol=1e-5, atol=1e-5)
    assert mine.first.grad.dtype == torch.float32


def other_backends(r, gather):
    whole = CASES["clip, where and weights"].call(r.data)
    for name in ("reference", "chunked"):
        with cl.use_backend(name):
            found = CASES["clip, where and weights"].call(r.mine, gather=gather)
        torch.testing.assert_close(found, whole)


def modules(r, gather):
    """Settings of construction; a queue that all ranks have alike."""
    queue = cl.memory.Queue(QUEUE, r.data.first.shape[1], dtype=torch.float64)
    queue.push(r.mine.queue)
    for ours, plain in (
        (cl.InfoNCELoss(0.4, gather=gather), cl.InfoNCELoss(0.4)),
        (cl.InfoNCELoss(0.4, in_batch_negatives=True, gather=gather),
         cl.InfoNCELoss(0.4, in_batch_negatives=True)),
    ):  # fmt: skip
        assert f"gather='{gather}'" in repr(ours)
        whole = plain(r.data.first, r.data.second, r.data.queue)
        torch.testing.assert_close(ours(r.mine.first, r.mine.second, queue.keys), whole)
    if gather == "all":
        widths = cl.MatryoshkaLoss(cl.InfoNCELoss(0.4, gather="all"), dims=(12, 4))
        whole = cl.MatryoshkaLoss(cl.InfoNCELoss(0.4), dims=(12, 4))
        torch.testing.assert_close(
            widths(r.mine.first, r.mine.second), whole(r.data.first, r.data.second)
        )


def copied_with_its_group(r, gather):
    """As a trainer that averages weights does."""
    group = dist.new_group([0, 1])
    temperature = torch.nn.Parameter(torch.tensor(0.4, dtype=torch.float64))
    loss = cl.NTXentLoss(temperature, gather=gather, group=group)
    again = copy.deepcopy(loss)
    assert again.group is group and again.temperature is not temperature
    embeddings = r.mine.first, r.mine.second
    torch.testing.assert_close(again(*embeddings), loss(*embeddings))
    again(*embeddings).backward()
    assert again.temperature.grad is not None and temperature.grad is None


CONTEXTS = (
    the_same_tensor_twice, the_same_tensor_twice_on_one_rank, several_backward_passes,
    a_second_backward_is_refused,
    another_thread, no_gradient, checkpointed, factors_that_differ, changed_before_backward,
    under_autocast, other_backends, modules, copied_with_its_group,
)  # fmt: skip


def all_contexts(rank):
    import cl_kernels.memory  # noqa: F401

    for gather in BOTH:
        for context in CONTEXTS:
            try:
                context(Ranks(rank), gather)
            except BaseException as error:
                raise AssertionError(f"{context.__name__}, {gather}") from error


def test_contexts():
    run(all_contexts, 2)
