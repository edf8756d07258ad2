"""torch.compile and torch.export: one graph for all sizes and numbers, one tensor given twice."""

import pytest
import torch
from torch.utils._pytree import tree_leaves

import cl_kernels
from cl_kernels import PairFilter

SIZES = (6, 9, 14, 5)
TEMPERATURES = (0.05, 0.1, 0.3, 0.7)
GRAPHS = 2  # of sizes and numbers that change: one for the first, one for all others


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def pair(rows, trained=(True, True)):
    return tuple(torch.randn(rows, 8, requires_grad=t) for t in trained)


def outcome(function, arguments):
    """All that comes out, and the gradients of all that went in."""
    results = [x for x in tree_leaves(function(*arguments)) if isinstance(x, torch.Tensor)]
    leaves = {id(x): x for x in tree_leaves(arguments) if getattr(x, "requires_grad", False)}
    differentiable = [x for x in results if x.requires_grad]
    if not differentiable:
        return results
    total = sum(x.masked_fill(x.isinf(), 0).sum() for x in differentiable)
    return [*results, *torch.autograd.grad(total, [*leaves.values()])]


def compiled_in(function, calls, dynamic=None):
    """Compares every call with what is computed without torch.compile; how many graphs it took."""
    graphs = 0

    def backend(graph, examples):
        nonlocal graphs
        graphs += 1
        return torch._dynamo.backends.registry.lookup_backend("aot_eager")(graph, examples)

    compiled = torch.compile(function, backend=backend, fullgraph=True, dynamic=dynamic)
    for arguments in calls:
        torch.testing.assert_close(outcome(compiled, arguments), outcome(function, arguments))
    return graphs


def labels(rows):
    return torch.arange(rows) % 3


def filtered(x, y):
    ids = labels(x.shape[0])
    return cl_kernels.row_col_logsumexp(x, y, 2.0, where=PairFilter(ids, ids, "different"))


OF_PAIRS = {
    "nt_xent": lambda x, y: cl_kernels.nt_xent(x, y),
    "nt_xent, none": lambda x, y: cl_kernels.nt_xent(x, y, reduction="none"),
    "nt_xent, queue": lambda x, y: cl_kernels.nt_xent(x, x * 2, negative_keys=y),
    "nt_xent, chunked": lambda x, y: cl_kernels.nt_xent(x, y, backend="chunked"),
    "clip": lambda x, y: cl_kernels.clip(x, y, 3.0),
    "info_nce": lambda x, y: cl_kernels.info_nce(x, y),
    "info_nce, queue": lambda x, y: cl_kernels.info_nce(x, x * 2, y),
    "info_nce, hardest": lambda x, y: cl_kernels.info_nce(x, y, hardest=3),
    "info_nce, target": lambda x, y: cl_kernels.info_nce(
        x, y, target=torch.arange(x.shape[0]).roll(1)
    ),
    "info_nce, own": lambda x, y: cl_kernels.info_nce(x, y, y[:, None] * torch.ones(1, 4, 1)),
    "row_col_logsumexp, filtered": filtered,
    "self_logsumexp": lambda x, y: cl_kernels.self_logsumexp(x * y, 2.0),
    "topk": lambda x, y: cl_kernels.topk(x, y, 3),
    "topk, exclude": lambda x, y: cl_kernels.topk(x, y, 3, exclude=torch.arange(x.shape[0])),
    "topk, padded": lambda x, y: cl_kernels.topk(x, y, 3, exclude=labels(x.shape[0])[:, None] - 1),
    "topk, CSR": lambda x, y: cl_kernels.topk(
        x, y, 3, exclude=(torch.arange(x.shape[0] + 1), labels(x.shape[0]))
    ),
    "topk, bounds": lambda x, y: cl_kernels.topk(
        x, y, 3, below=torch.zeros(x.shape[0]), above=-0.9
    ),
    "hardest_negative": lambda x, y: cl_kernels.hardest_negative(x * y, labels(x.shape[0])),
    "hardest_positive": lambda x, y: cl_kernels.hardest_positive(x * y, labels(x.shape[0])),
    "semi_hard_negative": lambda x, y: cl_kernels.semi_hard_negative(x * y, labels(x.shape[0])),
    "semi_hard_negative, positive": lambda x, y: cl_kernels.semi_hard_negative(
        x * y, labels(x.shape[0]), positive=torch.arange(x.shape[0]).roll(3)
    ),
}


@pytest.mark.parametrize("name", OF_PAIRS)
def test_batch_sizes(name):
    assert compiled_in(OF_PAIRS[name], [pair(n) for n in SIZES], dynamic=True) <= GRAPHS


@pytest.mark.parametrize("name", ["nt_xent", "info_nce, queue", "hardest_negative"])
def test_batch_sizes_found_to_change(name):
    assert compiled_in(OF_PAIRS[name], [pair(n) for n in SIZES]) <= GRAPHS


@pytest.mark.parametrize("trained", [(True, False), (False, True), (False, False)], ids=str)
@pytest.mark.parametrize("name", ["nt_xent", "info_nce", "info_nce, queue", "info_nce, hardest"])
def test_batch_sizes_where_not_all_is_trained(name, trained):
    calls = [pair(n, trained) for n in SIZES]
    assert compiled_in(OF_PAIRS[name], calls, dynamic=True) <= GRAPHS


@pytest.mark.parametrize("dynamic", [None, True])
@pytest.mark.parametrize(
    "function",
    [
        lambda x, y, t: cl_kernels.nt_xent(x, y, t),
        lambda x, y, t: cl_kernels.info_nce(x, y, temperature=t),
        lambda x, y, t: cl_kernels.info_nce(x, y, y, temperature=t),
        lambda x, y, t: cl_kernels.info_nce(x, y, temperature=t, hardest=3),
        lambda x, y, t: cl_kernels.clip(x, y, t, normalize=True),
        lambda x, y, t: cl_kernels.row_logsumexp(x, y, t),
    ],
)
def test_numbers(function, dynamic):
    calls = [(*pair(20), t) for t in TEMPERATURES]
    assert compiled_in(function, calls, dynamic) <= GRAPHS


@pytest.mark.parametrize(
    "function",
    [
        lambda x, y, k: cl_kernels.topk(x, y, k),
        lambda x, y, k: cl_kernels.info_nce(x, y, hardest=k),
        lambda x, y, k: cl_kernels.info_nce(x, y, y, hardest=k),
    ],
)
def test_how_many(function):
    """1 and 0 are constants to torch.compile."""
    assert compiled_in(function, [(*pair(20), k) for k in range(2, 6)]) <= GRAPHS


@pytest.mark.parametrize("name", ["below", "above"])
def test_bounds(name):
    def function(x, y, bound):
        return cl_kernels.topk(x, y, 3, **{name: bound})

    calls = [(*pair(20), b) for b in TEMPERATURES]
    assert compiled_in(function, calls, dynamic=True) <= GRAPHS


SAME = {
    "row_logsumexp": lambda q, _: cl_kernels.row_logsumexp(q, q),
    "row_col_logsumexp": lambda q, _: cl_kernels.row_col_logsumexp(q, q),
    "pair_logits": lambda q, _: cl_kernels.pair_logits(q, q),
    "nt_xent": lambda q, _: cl_kernels.nt_xent(q, q),
    "nt_xent, none": lambda q, _: cl_kernels.nt_xent(q, q, reduction="none"),
    "nt_xent, queue": lambda q, _: cl_kernels.nt_xent(q, q, negative_keys=q),
    "clip": lambda q, _: cl_kernels.clip(q, q, 2.0),
    "clip, none": lambda q, _: cl_kernels.clip(q, q, 2.0, reduction="none"),
    "info_nce": lambda q, _: cl_kernels.info_nce(q, q),
    "info_nce, queue": lambda q, _: cl_kernels.info_nce(q, q, q),
    "info_nce, hardest": lambda q, _: cl_kernels.info_nce(q, q, hardest=3),
    "topk": lambda q, _: cl_kernels.topk(q, q, 3),
    "hardest_negative": lambda q, labels: cl_kernels.hardest_negative(q, labels),
    "hardest_positive": lambda q, labels: cl_kernels.hardest_positive(q, labels),
    "semi_hard_negative": lambda q, labels: cl_kernels.semi_hard_negative(q, labels),
    "its own views": lambda q, _: cl_kernels.nt_xent(*q.tanh().chunk(2)),
    "computed": lambda q, _: (lambda h: cl_kernels.info_nce(h, h))(q.tanh()),
}


@pytest.mark.parametrize("name", SAME)
def test_one_tensor_in_two_places(name):
    compiled_in(SAME[name], [(pair(12)[0], labels(12))])


def test_one_tensor_given_twice():
    twice = (pair(12)[0],) * 2
    compiled_in(lambda x, y: cl_kernels.nt_xent(x, y), [twice, pair(12), twice])


def test_a_backend_that_changes_between_calls():
    """What a block decides is guarded: leaving it brings back what was there before."""
    codes = []

    def backend(graph, _):
        codes.append(graph.code)
        return graph.forward

    compiled = torch.compile(OF_PAIRS["nt_xent"], backend=backend, fullgraph=True)
    arguments = pair(12)
    compiled(*arguments)
    with cl_kernels.use_backend("reference"):
        compiled(*arguments)
    compiled(*arguments)
    assert ["reference" in code for code in codes] == [False, True]


def test_blocks_inside_of_what_is_compiled():
    def function(x, y):
        with cl_kernels.use_backend("reference"), cl_kernels.debug_checks():
            return cl_kernels.nt_xent(x, y)

    compiled_in(function, [pair(12), pair(12)])
    assert cl_kernels.explain(cl_kernels.nt_xent, *pair(2)).plans[0].call.backend != "reference"


class _Loss(torch.nn.Module):
    def __init__(self, function, encoder):
        super().__init__()
        self.function, self.encoder = function, encoder

    def forward(self, x, y):
        return self.function(self.encoder(x), self.encoder(y))


@pytest.mark.parametrize(
    "name", ["nt_xent", "clip", "info_nce", "info_nce, queue", "topk", "hardest_negative"]
)
@pytest.mark.parametrize("trained", [False, True])
def test_exported_with_a_batch_of_any_size(name, trained):
    batch = torch.export.Dim("batch", min=2)
    shapes = {"x": {0: batch}, "y": {0: batch}}
    module = _Loss(OF_PAIRS[name], torch.nn.Linear(8, 8) if trained else torch.nn.Identity())
    program = torch.export.export(module, pair(12, (False, False)), dynamic_shapes=shapes)
    for rows in (2, 7, 40):
        arguments = pair(rows, (False, False))
        torch.testing.assert_close(
            tree_leaves(program.module()(*arguments)), tree_leaves(module(*arguments))
        )
