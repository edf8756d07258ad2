"""Every loss of the batches of several processes against that of one that has all of them."""

import copy
import warnings

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP

import cl_kernels as cl
from cl_kernels.losses.sharding import SHARDINGS
from python_tests.distributed.cases import CASES, MEAN, WIDTH, Data
from python_tests.distributed.processes import needs_gloo, run

SIZES = {2: [5, 8], 3: [6, 0, 7], 4: [5, 3, 4, 7]}
EXACT = 1e-10

pytestmark = needs_gloo


def test_every_loss_has_a_case():
    assert {name.split(",")[0] for name in CASES} == set(SHARDINGS)
    functions = {n for n in cl.losses.__all__ if n.islower()} - {"matryoshka"}
    assert set(SHARDINGS) == functions


def own_losses(case, data, rank, losses):
    """Of the losses of all rows those of a rank."""
    part = data.rows_of(rank)
    if case.rows == "views":
        return losses.view(2, -1)[:, part].reshape(-1)
    if case.rows == "pairs":
        counts = [2 * max(count - 1, 0) for count in data.sizes]
        first = sum(counts[:rank])
        return losses[first : first + counts[rank]]
    each = len(losses) // max(sum(data.sizes), 1)
    return losses[part.start * each : part.stop * each]


def expected(case, data, options):
    """The loss of one process and its gradients; of rows' losses those of a weighted sum."""
    x = data.with_leaves()
    loss = case.call(x, **options)
    upstream = torch.linspace(0.5, 1.5, loss.numel(), dtype=loss.dtype).view_as(loss)
    loss.backward(upstream)
    return loss.detach(), upstream, x


def differences(name, case, data, rank, ranks, gather):
    """Names of what differs."""
    found = []
    reductions = case.reductions
    if ranks > 2 and len(reductions) > 1:  # two ranks go through all of them
        reductions = ("none",) if ranks == 3 else ("mean",)
    for reduction in reductions or (None,):
        options = {} if reduction is None else {"reduction": reduction}
        whole, upstream, exact = expected(case, data, options)
        x = data.of(rank)
        loss = case.call(x, gather=gather, **options)
        # DDP takes the mean over the ranks of what they make of their losses.
        share = 1.0
        if reduction == "none":
            whole, upstream = (own_losses(case, data, rank, y) for y in (whole, upstream))
            share = 1 / ranks
        loss.backward(upstream)
        wrong = [] if close(loss.detach(), whole) else ["value"]
        of_rows = zip(("first", "second"), x.trained[:2], exact.trained[:2], strict=True)
        for what, got, exactly in of_rows:
            mine = None if exactly.grad is None else exactly.grad[data.rows_of(rank)] * share
            if not close(None if got.grad is None else got.grad / ranks, mine):
                wrong.append(what)
        for what, got, exactly in zip(
            ("weight", "scale"), x.trained[2:], exact.trained[2:], strict=True
        ):
            if exactly.grad is not None:
                grad = torch.zeros_like(got) if got.grad is None else got.grad.clone()
                dist.all_reduce(grad)
                if not close(grad / ranks, exactly.grad * share):
                    wrong.append(what)
        found += [f"{gather}: {name}, {reduction}: {what}" for what in wrong]
    return found


def close(got, exact):
    if got is None or exact is None:
        return (exact is None or not exact.any()) and (got is None or not got.any())
    return got.shape == exact.shape and bool(
        (got - exact).abs().le(EXACT * (1 + exact.abs())).all()
    )


def all_cases(rank, sizes):
    data, found = Data.random(sizes), []
    for gather in ("all", "ring"):
        for name, case in CASES.items():
            found += differences(name, case, data, rank, len(sizes), gather)
    return found


@pytest.mark.parametrize("ranks", SIZES)
def test_every_loss(ranks):
    for found in run(all_cases, ranks, SIZES[ranks]):
        assert not found, "\n".join(found)


def single_rows(rank, sizes):
    """Of one row each, whose strides may be anything."""
    data = Data.random(sizes)
    columns = {
        name: torch.stack([getattr(data, name)] * 3, 1)[:, 0] for name in ("labels", "numbers")
    }
    names = "supcon", "clip, where and weights", "cosent", "siglip, ids", "decoupled, each view"
    found = []
    for gather in ("all", "ring"):
        for name in names:
            given = data._replace(**columns)
            found += differences(name, CASES[name], given, rank, len(sizes), gather)
    return found


@pytest.mark.parametrize("sizes", [[1, 1], [6, 1]], ids=str)
def test_ranks_of_one_row(sizes):
    for found in run(single_rows, 2, sizes):
        assert not found, "\n".join(found)


class Model(nn.Module):
    """Two towers and a learned scale."""

    def __init__(self):
        super().__init__()
        self.towers = nn.ModuleList(nn.Linear(WIDTH, 7).double() for _ in range(2))
        self.scale = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))

    def forward(self, first, second):
        return self.towers[0](first), self.towers[1](second), self.scale.exp()


def trained_by_ddp(rank, sizes):
    """Gradients of a model in DDP, with either way to gather, and with gradient caching on top."""
    data, mine = Data.random(sizes), Data.random(sizes).of(rank)
    torch.manual_seed(0)
    model = Model()
    single = copy.deepcopy(model)
    loss = cl.clip(*single(data.first, data.second), normalize=True)
    loss.backward()
    exact = [p.grad for p in single.parameters()]
    for gather in ("all", "ring"):
        ddp = DDP(copy.deepcopy(model))
        found = cl.clip(*ddp(mine.first, mine.second), normalize=True, gather=gather)
        found.backward()
        torch.testing.assert_close(found, loss)
        torch.testing.assert_close([p.grad for p in ddp.parameters()], exact)
    loss_of_towers = DDP(_Loss(model.scale))
    towers = [DDP(tower) for tower in copy.deepcopy(model.towers)]
    cl.grad_cache.grad_cache_step(
        towers, [mine.first.detach(), mine.second.detach()], loss_of_towers, chunk_size=2 + rank
    )
    got = [p.grad for module in (loss_of_towers, *towers) for p in module.parameters()]
    torch.testing.assert_close(got, exact)


class _Loss(nn.Module):
    def __init__(self, scale):
        super().__init__()
        self.scale = nn.Parameter(scale.detach().clone())

    def forward(self, first, second):
        return cl.clip(first, second, self.scale.exp(), normalize=True, gather="all")


def half_types(rank, sizes):
    """The one rounding of a gradient comes after the ranks' parts are added."""
    data = Data.random(sizes, torch.bfloat16)
    wide = Data.random(sizes)._replace(first=data.first.double(), second=data.second.double())
    for name in ("clip", "info_nce", "nt_xent", "supcon", "vicreg"):
        case = CASES[name]
        _, upstream, exact = expected(case, wide, {})
        for gather in ("all", "ring"):
            x = data.of(rank)
            case.call(x, gather=gather).backward(upstream)
            for got, exactly in zip(x.trained[:2], exact.trained[:2], strict=True):
                if exactly.grad is not None:
                    mine = exactly.grad[data.rows_of(rank)]
                    error = (got.grad.double() / len(sizes) - mine).norm()
                    assert error <= 4e-3 * exactly.grad.norm(), (name, gather, float(error))


def some_of_the_ranks(rank):
    """A group of ranks 0 and 2 of three; rank 1 is not in it and computes alone."""
    group = dist.new_group([0, 2])
    data = Data.random([4, 6])
    if rank == 1:
        with pytest.raises(ValueError, match="group: expected one that this process is in"):
            cl.clip(data.first, data.second, 3.0, gather="all", group=group)
        return
    case, mine = CASES["clip"], data.of(rank // 2)
    whole, _, _ = expected(case, data, {})
    for gather in ("all", "ring"):
        torch.testing.assert_close(case.call(mine, gather=gather, group=group), whole)
    single = dist.new_group([rank], use_local_synchronization=True)
    torch.testing.assert_close(
        case.call(mine, gather="all", group=single), case.call(mine, gather="ring", group=single)
    )


def warned_once(rank):
    x = Data.random([3])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        CASES["clip"].call(x, gather="all")
        assert not caught
        for name in ("clip", "nt_xent", "arcface"):
            CASES[name].call(x)
        CASES["clip"].call(x, gather="ring")
    assert [str(w.message)[:35] for w in caught] == ["2 processes, and a loss of this one"]
    assert caught[0].filename.endswith("cases.py")


def compiled(rank, sizes):
    """torch.compile leaves it to Python, and compiles what is around it."""
    data, mine = Data.random(sizes), Data.random(sizes).of(rank)
    whole, _, _ = expected(CASES["clip"], data, {})

    @torch.compile(backend="aot_eager")
    def step(first, second):
        return cl.clip(2 * first, 3 * second, data.scale, normalize=True, gather="all") + 1

    torch.testing.assert_close(step(mine.first, mine.second) - 1, whole)


def two_ranks(rank):
    warned_once(rank)
    trained_by_ddp(rank, [4, 6])
    half_types(rank, [40, 56])
    compiled(rank, [5, 4])


def test_training_with_two_ranks():
    run(two_ranks, 2)


def test_groups():
    run(some_of_the_ranks, 3)


def test_alone():
    """No group is initialised: the same code."""
    x = Data.random([6]).with_leaves()
    for name, case in CASES.items():
        for gather in ("all", "ring"):
            options = {"reduction": "mean"} if MEAN[0] in case.reductions else {}
            assert torch.equal(case.call(x, gather=gather, **options), case.call(x, **options)), (
                name
            )


def test_arguments():
    x = Data.random([4])
    with pytest.raises(ValueError, match='gather: expected "all" or "ring", got \'some\''):
        CASES["clip"].call(x, gather="some")
    with pytest.raises(ValueError, match='gather: expected "all" or "ring" with a group, got None'):
        CASES["clip"].call(x, group=object())
    with pytest.raises(TypeError, match=r"group: expected a torch\.distributed group or None"):
        CASES["clip"].call(x, group=object(), gather="all")
