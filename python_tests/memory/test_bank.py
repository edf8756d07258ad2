"""A row for each instance: updates by hand in float64, and losses over the rows that were seen."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cl_kernels import PairFilter, debug_checks, info_nce, nt_xent, supcon
from cl_kernels.memory import MemoryBank

N, D = 12, 5
EXACT = {"rtol": 1e-12, "atol": 1e-14}


def rows(n, dtype=torch.float64):
    return torch.randn(n, D, dtype=torch.float64).to(dtype)


def bank_of(**options):
    return MemoryBank(N, D, **{"dtype": torch.float64, **options})


def by_hand(table, indices, embeddings, momentum, normalize):
    """``table``: rows by instance. The last embedding of an instance counts."""
    for i, x in dict(zip(indices.tolist(), embeddings, strict=True)).items():
        x = x / x.norm() if normalize else x
        if i in table:
            x = momentum * table[i] + (1 - momentum) * x
            x = x / x.norm() if normalize else x
        table[i] = x


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("momentum", [0, 0.5, 0.9, 1])
def test_updates_by_hand(momentum, normalize):
    bank, table = bank_of(momentum=momentum, normalize=normalize), {}
    for n in (3, 0, 1, 5, 9, 2 * N, N, N):
        indices, x = torch.randint(0, N, (n,)), 3 * rows(n)
        bank.update(indices, x)
        by_hand(table, indices, x, momentum, normalize)
        assert bank.indices.tolist() == sorted(table) and len(bank) == len(table)
        expected = torch.stack([table[i] for i in sorted(table)])
        torch.testing.assert_close(bank.keys, expected, **EXACT)
        assert bank.seen.nonzero().squeeze(1).tolist() == sorted(table)
        torch.testing.assert_close(bank.rows(bank.indices), expected, **EXACT)
        assert not bank.rows((~bank.seen).nonzero().squeeze(1)).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_half_rows_are_moved_in_float32(dtype):
    bank, exact = bank_of(dtype=dtype, momentum=0.7), rows(N)
    old = F.normalize(exact, dim=1).to(dtype)
    new = rows(N, dtype)
    bank.update(torch.arange(N), exact)
    assert torch.equal(bank.keys, old)
    bank.update(torch.arange(N), new)
    expected = F.normalize(0.7 * old.double() + 0.3 * F.normalize(new.double(), dim=1), dim=1)
    assert bank.keys.dtype == dtype
    roundings = 0.51 if dtype.itemsize == 2 else 4  # half types: of the result, and no other
    rule = {"rtol": roundings * torch.finfo(dtype).eps, "atol": 1e-7}
    torch.testing.assert_close(bank.keys.double(), expected, **rule)


def test_random_rows():
    bank = bank_of(initialize="random", momentum=0.5)
    before = bank.keys.clone()
    torch.testing.assert_close(before.norm(dim=1), torch.ones(N).double())
    assert len(bank) == N and (before @ before.T - torch.eye(N)).abs().max() < 1
    x = rows(1)
    bank.update(torch.tensor([3]), x)
    expected = F.normalize(0.5 * before[3] + 0.5 * F.normalize(x, dim=1)[0], dim=0)
    torch.testing.assert_close(bank.keys[3], expected, **EXACT)


def test_a_row_that_is_not_finite_is_replaced():
    bank = bank_of()
    bank.update(torch.arange(3), rows(3).index_fill(0, torch.tensor(1), torch.nan))
    x = rows(3)
    bank.update(torch.arange(3), x)
    assert bank.keys.isfinite().all()
    torch.testing.assert_close(bank.keys[1], F.normalize(x, dim=1)[1], **EXACT)


def test_update_between_forward_and_backward():
    for initialize in ("empty", "random"):
        bank = bank_of(initialize=initialize)
        bank.update(torch.arange(6), rows(6))
        index, query = torch.tensor([1, 4, 4]), rows(3).requires_grad_()
        keys = bank.keys
        positive, before = bank.rows(index), keys.clone()
        loss = ((query @ keys.T).logsumexp(1) - (query * positive).sum(1)).sum()
        for _ in range(3):
            bank.update(index, query)
        logits = query @ before.T
        at = torch.searchsorted(bank.indices, index)
        expected = F.cross_entropy(logits, at, reduction="sum")
        assert torch.equal(keys, before) and not torch.equal(bank.keys, before)
        mine, theirs = (torch.autograd.grad(x, query)[0] for x in (loss, expected))
        torch.testing.assert_close(mine, theirs, **EXACT)


def test_rows_are_copied_only_where_they_were_read():
    bank = bank_of(initialize="random")
    place = bank.keys.data_ptr()
    bank.update(torch.arange(2), rows(2))
    moved = bank.keys.data_ptr()
    assert moved != place
    bank.update(torch.arange(2), rows(2))
    place = bank._rows.data_ptr()
    assert moved != place
    for _ in range(3):
        bank.rows(torch.arange(4))
        bank.update(torch.arange(2), rows(2))
    assert bank._rows.data_ptr() == place


def test_instance_discrimination():
    """Wu et al. (2018), equation 2: minus the log of the softmax over all rows."""
    bank = bank_of(initialize="random")
    index, query = torch.tensor([0, 7, 7, 11]), rows(4).requires_grad_()
    others = PairFilter(index, bank.indices, "different")
    loss = info_nce(query, bank.rows(index), bank.keys, negative_where=others, temperature=0.07)
    of_targets = info_nce(query, bank.keys, target=index, in_batch_negatives=True, temperature=0.07)
    logits = F.normalize(query, dim=1) @ bank.keys.T / 0.07
    expected = F.cross_entropy(logits, index)
    bank.update(index, query)
    for ours in (loss, of_targets):
        torch.testing.assert_close(ours, expected, rtol=1e-11, atol=1e-13)
        of_both = [torch.autograd.grad(x, query, retain_graph=True)[0] for x in (ours, expected)]
        torch.testing.assert_close(*of_both, rtol=1e-11, atol=1e-13)


def test_labels_over_the_data_set():
    labels = torch.arange(N) % 4
    bank = bank_of(labels=labels)
    seen = torch.tensor([1, 2, 3, 5, 6, 7, 9])
    bank.update(seen.flip(0), rows(7))
    assert torch.equal(bank.labels, labels[seen])
    z, of_z = rows(5).requires_grad_(), torch.tensor([1, 2, 3, 1, 2])
    loss = supcon(z, of_z, bank.keys, bank.labels, temperature=0.2)
    log_p = (F.normalize(z, dim=1) @ bank.keys.T / 0.2).log_softmax(1)
    positive = of_z[:, None] == labels[seen]
    expected = (-(log_p * positive).sum(1) / positive.sum(1)).mean()
    torch.testing.assert_close(loss, expected, rtol=1e-11, atol=1e-13)
    index = torch.arange(5)
    others = PairFilter(index.repeat(2), bank.indices, "different")
    assert nt_xent(z, rows(5), negative_keys=bank.keys, negative_where=others).isfinite()
    with pytest.raises(ValueError, match="labels: expected a bank made with labels"):
        _ = bank_of().labels


def test_labels_are_the_banks_own():
    labels = torch.arange(N)
    bank = bank_of(labels=labels, initialize="random")
    labels.zero_()
    assert torch.equal(bank.labels, torch.arange(N))


@pytest.mark.parametrize("steps", [0, 1, 6])
def test_training_goes_on_from_a_checkpoint(steps):
    model, other = (nn.ModuleDict({"bank": bank_of(labels=torch.arange(N))}) for _ in range(2))
    for _ in range(steps):
        model["bank"].update(torch.randint(0, N, (4,)), rows(4))
    other["bank"].update(torch.arange(N), rows(N))
    keys = other["bank"].keys
    other.load_state_dict(copy.deepcopy(model.state_dict()))
    assert not torch.equal(other["bank"].keys, keys)
    for _ in range(5):
        indices, x = torch.randint(0, N, (4,)), rows(4)
        for each in (model, other):
            each["bank"].update(indices, x)
        assert torch.equal(model["bank"].keys, other["bank"].keys)
        assert torch.equal(model["bank"].labels, other["bank"].labels)
    assert list(model.state_dict()) == ["bank.rows", "bank.seen", "bank.labels"]
    with pytest.raises(RuntimeError, match=r"rows: expected shape \[12, 5\], got shape \[3, 5\]"):
        model["bank"].load_state_dict(MemoryBank(3, D, labels=torch.arange(3)).state_dict())


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_are_their_own(copied):
    bank = bank_of(initialize="random")
    keys = bank.keys.clone()
    other = copied(bank)
    other.update(torch.arange(N), rows(N))
    assert torch.equal(bank.keys, keys) and not torch.equal(other.keys, keys)


def test_moves_with_its_model():
    bank = bank_of(labels=torch.arange(N))
    bank.update(torch.arange(3), rows(3))
    keys = bank.keys
    nn.ModuleList([bank]).to(torch.float32)
    assert bank.dtype == torch.float32 and torch.equal(bank.keys, keys.float())
    assert bank.labels.dtype == torch.int64 and bank.seen.dtype == torch.bool
    assert bank.to("meta").device.type == "meta"


def test_updates_read_no_values():
    """Nothing waits for a device: a tensor on meta has none."""
    bank = bank_of(initialize="random", labels=torch.arange(N), device="meta")
    for _ in range(3):
        bank.update(torch.empty(4, dtype=torch.int64, device="meta"), rows(4).to("meta"))
        assert bank.keys.shape == (N, D) and bank.labels.is_meta


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_without_gradients(context):
    with context():
        bank = bank_of()
        bank.update(torch.arange(N), rows(N))
        bank.update(torch.arange(N), rows(N))
    query = rows(2).requires_grad_()
    (query @ bank.keys.T).logsumexp(1).sum().backward()
    bank.update(torch.arange(2), query)
    assert not bank.keys.requires_grad and query.grad.isfinite().all()


def test_compiled():
    bank, twin = bank_of(momentum=0.5), bank_of(momentum=0.5)
    for each in (bank, twin):
        each.update(torch.arange(N), torch.ones(N, D).double())
    assert len(bank) == N

    @torch.compile(backend="eager")
    def step(index, query):
        loss = (query @ bank.keys.T).logsumexp(1).sum()
        bank.update(index, query)
        return loss

    for _ in range(4):
        index, query = torch.randint(0, N, (3,)), rows(3).requires_grad_()
        loss = step(index, query)
        keys = twin.keys
        twin.update(index, query)
        expected = (query @ keys.T).logsumexp(1).sum()
        torch.testing.assert_close(loss, expected, **EXACT)
        mine, theirs = (torch.autograd.grad(x, query)[0] for x in (loss, expected))
        torch.testing.assert_close(mine, theirs, **EXACT)
        assert torch.equal(bank.keys, twin.keys)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"instances": 0}, ValueError, "instances: expected at least 1, got 0"),
        ({"dim": 2.0}, TypeError, "dim: expected an integer, got float"),
        ({"momentum": 1.1}, ValueError, "momentum: expected from 0 to 1, got 1.1"),
        ({"momentum": float("nan")}, ValueError, "momentum: expected from 0 to 1, got nan"),
        ({"momentum": "0.5"}, TypeError, "momentum: expected a number, got str"),
        ({"normalize": 1}, TypeError, "normalize: expected True or False, got 1"),
        ({"initialize": "zeros"}, ValueError, "initialize: expected"),
        ({"labels": torch.arange(3)}, ValueError, "labels: expected one for each of the 12"),
        ({"labels": torch.randn(N)}, TypeError, "labels: expected an integer tensor"),
        ({"dtype": torch.int8}, TypeError, "dtype: expected one of"),
    ],
)
def test_bad_constructions(change, error, message):
    with pytest.raises(error, match=message):
        MemoryBank(**{"instances": N, "dim": D, **change})


INDEX, X = torch.arange(2), torch.randn(2, D)


@pytest.mark.parametrize(
    ("indices", "embeddings", "error", "message"),
    [
        (torch.tensor([0, N]), X, ValueError, r"indices: expected in \[0, 12\), got 0 to 12"),
        (torch.tensor([-1, 0]), X, ValueError, r"indices: expected in \[0, 12\), got -1 to 0"),
        (INDEX[:1], X, ValueError, "indices: expected one for each of the 2 rows of embeddings"),
        (INDEX[None], X, ValueError, r"indices: expected shape \[n\], got \[1, 2\]"),
        (INDEX.float(), X, TypeError, "indices: expected an integer tensor, got torch.float32"),
        ([0, 1], X, TypeError, "indices: expected an integer tensor, got list"),
        (INDEX.to("meta"), X, ValueError, "indices: expected the device of the bank, cpu, got"),
        (INDEX, X[:, :4], ValueError, "embeddings: expected the width of the bank, 5, got 4"),
        (INDEX, X.long(), TypeError, "embeddings: expected one of"),
        (INDEX, X.to("meta"), ValueError, "embeddings: expected the device of the bank, cpu"),
    ],
)
def test_bad_updates_leave_the_bank_as_it_was(indices, embeddings, error, message):
    bank = bank_of(initialize="random")
    before = bank.keys.clone()
    with pytest.raises(error, match=message), debug_checks():
        bank.update(indices, embeddings)
    assert torch.equal(bank.keys, before)


def test_repr():
    shown = "MemoryBank(12, 5, momentum=0.5, normalize=True, dtype=torch.float64)"
    assert repr(bank_of()) == shown


def test_what_was_read_outlives_moves_and_copies():
    bank = MemoryBank(6, 4, initialize="random")
    keys = bank.keys
    before = keys.clone()
    bank.to("cpu")
    bank.update(torch.arange(3), torch.randn(3, 4))
    assert torch.equal(keys, before)
    other = copy.copy(bank)
    keys, before = bank.keys, bank.keys.clone()
    other.update(torch.arange(3), torch.randn(3, 4))
    assert torch.equal(keys, before) and torch.equal(bank.keys, before)
