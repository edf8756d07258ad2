"""Backward passes of two processes: what a loss is made of, who reduces, and FSDP."""

import copy

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel as DDP

import cl_kernels
from cl_kernels.grad_cache import GradCache
from python_tests.grad_cache.ranks import (
    EXACT,
    ROWS,
    Loss,
    check_gradients,
    data,
    encoder,
    reductions,
    whole_batch,
)

UNEVEN = 7  # rows of the first rank; the other has the rest


def of_all(*embeddings, gather="all"):
    return cl_kernels.info_nce(*embeddings, gather=gather)


def alone(*embeddings):
    return cl_kernels.info_nce(*embeddings, backend="reference")


def single_gradients(module, inputs, loss=alone):
    module = copy.deepcopy(module)
    loss(*map(module, inputs)).backward()
    return [p.grad for p in module.parameters()]


def uneven_ranks(rank):
    """In their rows and in their numbers of chunks, 1 and 7 an input, with a loss over all."""
    _, everything = data(rank)
    mine = [x[:UNEVEN] if rank == 0 else x[UNEVEN:] for x in everything]
    for gather in ("all", "ring"):
        module = encoder()
        ddp = DDP(module)
        counted = reductions(ddp)
        cache = GradCache(ddp, of_all, chunk_size=2 if rank else 100)
        cache(*mine, gather=gather).backward()
        torch.testing.assert_close(
            [p.grad for p in module.parameters()],
            single_gradients(module, everything),
            rtol=1e-10,
            atol=1e-13,
        )
        assert len(counted) == 1


class Texts(nn.Module):
    def __init__(self):
        super().__init__()
        self.tokens = nn.Embedding(30, 5).double()

    def forward(self, input_ids, attention_mask):
        return (self.tokens(input_ids).sin() * attention_mask[:, :, None]).sum(1)


def token_budgets(rank):
    """One rank has a text above the budget, and more chunks than the other."""
    lengths = [torch.tensor([2, 3, 1, 2]), torch.tensor([2, 12, 9, 9, 3, 1])]
    ids = [torch.randint(30, (len(n), 12)) for n in lengths]
    masks = [(torch.arange(12) < n[:, None]).double() for n in lengths]
    module = Texts()
    whole = copy.deepcopy(module)
    x = whole(torch.cat(ids), torch.cat(masks))
    alone(x, x.roll(1, 1)).backward()
    ddp = DDP(module)
    counted = reductions(ddp)
    inputs = {"input_ids": ids[rank], "attention_mask": masks[rank]}
    GradCache(ddp, lambda x: of_all(x, x.roll(1, 1)), max_tokens=10)(inputs).backward()
    torch.testing.assert_close(module.tokens.weight.grad, whole.tokens.weight.grad, **EXACT)
    assert len(counted) == 1


def accumulated_calls(rank):
    """As trainers do: ``no_sync`` around forward and backward; the forward pass decides."""
    mine, everything = data(rank)
    module, loss = encoder(), Loss()
    expected = whole_batch([module, module], loss, everything)
    ddp, ddp_loss = DDP(module), DDP(loss)
    counted = reductions(ddp)
    cache = GradCache(ddp, ddp_loss, chunk_size=3 + rank)
    with ddp.no_sync(), ddp_loss.no_sync():
        (cache(*mine) / 4).backward()
        kept = cache(*mine) / 4
    kept.backward()
    assert len(counted) == 0
    kept = cache(*mine) / 4
    with ddp.no_sync(), ddp_loss.no_sync():
        (cache(*mine) / 4).backward()
        assert len(counted) == 0
        kept.backward()
    assert len(counted) == 1
    check_gradients([ddp, ddp_loss], expected)


def losses_of_two_calls(rank):
    """Each reduces what there is by then; in one piece there is one reduction for both."""
    mine, everything = data(rank)
    for whole, count in ((False, 2), (True, 1)):
        module = encoder()
        expected = [3 * grad for grad in single_gradients(module, everything)]
        ddp = DDP(module)
        counted = reductions(ddp)
        cache = GradCache(ddp, of_all, chunk_size=4, whole_gradients=whole)
        (cache(*mine) + 2 * cache(*mine)).backward()
        torch.testing.assert_close([p.grad for p in module.parameters()], expected, **EXACT)
        assert len(counted) == count


def other_terms(rank):
    """Through the same DDP they are refused, or gradients are handed on in one piece."""
    mine, everything = data(rank)
    module = encoder()

    def loss(x, y):
        return alone(x, y) + y.square().mean()

    expected = single_gradients(module, everything, loss)
    for first in (True, False):
        ddp = DDP(copy.deepcopy(module))
        counted = reductions(ddp)
        cache = GradCache(ddp, of_all, chunk_size=4, whole_gradients=True)
        terms = [lambda: cache(*mine), lambda: ddp(mine[1]).square().mean()]  # noqa: B023
        sum(term() for term in (terms if first else terms[::-1])).backward()
        torch.testing.assert_close([p.grad for p in ddp.parameters()], expected, **EXACT)
        assert len(counted) == 1
    ddp = DDP(copy.deepcopy(module))
    other = ddp(mine[1]).square().mean()
    with pytest.raises(RuntimeError, match=r"without other terms .* pass whole_gradients=True"):
        (other + GradCache(ddp, of_all, chunk_size=4)(*mine)).backward()


class Training(nn.Module):
    """A step that is the forward pass of a module, as Lightning calls it under DDP."""

    def __init__(self, known):
        super().__init__()
        self.encoder, self.loss, self.spare = encoder(), Loss(), nn.Linear(2, 2).double()
        encode = self.encoder if known else lambda x: self.encoder(x)
        self.cache = GradCache(encode, self.loss, chunk_size=4)

    def forward(self, *inputs):
        return self.cache(*inputs)


def within_a_forward_pass(rank):
    """Also where parameters are left out, and with several steps in one reduction."""
    mine, everything = data(rank)
    for known in (True, False):
        training = Training(known)
        module, loss = training.encoder, training.loss
        expected = whole_batch([module, module], loss, everything)
        ddp = DDP(training, find_unused_parameters=known)
        counted = reductions(ddp)
        with ddp.no_sync():
            (ddp(*mine) / 2).backward()
        (ddp(*mine) / 2).backward()
        check_gradients([module, loss], expected)
        assert len(counted) == 1


def unused_parameters(rank):
    """Whichever chunk uses them: here each chunk uses another part."""
    mine, everything = data(rank)
    parts = nn.ModuleList([encoder() for _ in range(3)])

    class Choosing(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts, self.number = parts, 0

        def forward(self, x):
            self.number += 1
            return self.parts[(self.number - 1) // 2 % 2](x)

    for whole in (False, True):
        ddp = DDP(Choosing(), find_unused_parameters=True)
        cache = GradCache(ddp, of_all, chunk_size=ROWS // 2, whole_gradients=whole)
        cache(*mine).backward()
        first, second = (copy.deepcopy(part) for part in parts[:2])
        first.zero_grad(), second.zero_grad()
        alone(first(everything[0]), second(everything[1])).backward()
        check_gradients(parts[:2], [p.grad for m in (first, second) for p in m.parameters()])
        ddp.zero_grad()


def a_failing_backward_pass(rank):
    """On all ranks; buffers, gradients and the next step are as without it."""
    mine, everything = data(rank)
    module = encoder()
    ddp = DDP(module)
    calls = []

    def failing(x):
        calls.append(len(x))
        if len(calls) == 8:
            raise ZeroDivisionError
        return ddp(x)

    cache = GradCache(failing, of_all, chunk_size=4)
    with ddp.no_sync(), pytest.raises(ZeroDivisionError):
        cache(*mine).backward()
    assert all(p.grad is None for p in module.parameters())
    GradCache(ddp, of_all, chunk_size=4)(*mine).backward()
    torch.testing.assert_close(
        [p.grad for p in module.parameters()], single_gradients(module, everything), **EXACT
    )


def sharded_parameters(rank):
    """FSDP2 reduces once a chunk, so ranks have the same number of chunks."""
    mine, everything = data(rank)
    module = encoder()
    expected = single_gradients(module, everything)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for part in (module[0], module[2], module):
        fully_shard(part, mesh=mesh)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    cache = GradCache(module, of_all, chunk_size=4)
    for _ in range(2):
        optimizer.zero_grad()
        cache(*mine).backward()
        got = [p.grad.full_tensor() for p in module.parameters()]
        torch.testing.assert_close(got, expected, **EXACT)
    loss = cache(*mine)
    optimizer.step()
    with pytest.raises(RuntimeError, match="a step of SGD since"):
        loss.backward()
    optimizer.zero_grad()
    (module(mine[0]).sum() + cache(*mine)).backward()  # which may not be the other way round
    with pytest.raises(RuntimeError, match="without other terms through their fully_shard module"):
        (cache(*mine) + module(mine[0]).sum()).backward()
    with pytest.raises(ValueError, match="encoders: expected no fully_shard where"):
        GradCache(module, of_all, chunk_size=4, whole_gradients=True)(*mine)


SCENARIOS = [
    uneven_ranks,
    token_budgets,
    accumulated_calls,
    losses_of_two_calls,
    other_terms,
    within_a_forward_pass,
    unused_parameters,
    a_failing_backward_pass,
    sharded_parameters,
]
