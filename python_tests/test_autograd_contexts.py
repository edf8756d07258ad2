"""Gradients where something happens between forward and backward, or another transform asks."""

import pytest
import torch
from torch.autograd import forward_ad

import cl_kernels
from cl_kernels import PairFilter
from python_tests.helpers import PRIMITIVES, statistics


def ids():
    return torch.arange(6) % 3


def different(of):
    return PairFilter(of, of, "different")


FILTERED = {
    "row_logsumexp": lambda x, y, of: cl_kernels.row_logsumexp(x, y, where=different(of)).sum(),
    "row_logsumexp, frozen key": lambda x, y, of: cl_kernels.row_logsumexp(
        x, y.detach(), where=different(of)
    ).sum(),
    "row_col_logsumexp": lambda x, y, of: sum(
        s.sum() for s in cl_kernels.row_col_logsumexp(x, y, where=different(of))
    ),
    "self_logsumexp": lambda x, y, of: cl_kernels.self_logsumexp(x, where=different(of)).sum(),
    "nt_xent": lambda x, y, of: cl_kernels.nt_xent(x, y, where=different(of.repeat(2))),
    "info_nce": lambda x, y, of: cl_kernels.info_nce(x, y, where=different(of)),
    "info_nce, none": lambda x, y, of: cl_kernels.info_nce(
        x, y, where=different(of), reduction="none"
    ).sum(),
    "info_nce, queue": lambda x, y, of: cl_kernels.info_nce(
        x, y, y.detach().clone(), where=different(of)
    ),
    "info_nce, target": lambda x, y, of: cl_kernels.info_nce(x, y, target=of),
    "info_nce, hardest": lambda x, y, of: cl_kernels.info_nce(
        x, y, where=different(of), hardest=2
    ),
    "info_nce, own": lambda x, y, of: cl_kernels.info_nce(
        x, x * 2, y[:, None] * torch.ones(1, 3, 1), negative_mask=of
    ),
    "topk": lambda x, y, of: cl_kernels.topk(x, y, 2, where=different(of)).values.sum(),
    "topk, exclude": lambda x, y, of: cl_kernels.topk(x, y, 2, exclude=of).values.sum(),
    "hardest_negative": lambda x, y, of: cl_kernels.hardest_negative(x, of).values.sum(),
    "semi_hard_negative": lambda x, y, of: cl_kernels.semi_hard_negative(x, of, positive=of)
    .values.clamp_min(-9)
    .sum(),
}  # fmt: skip


@pytest.mark.parametrize("backend", ["native", "chunked"], indirect=True)
@pytest.mark.parametrize("name", FILTERED)
def test_ids_changed_before_backward(name, backend):
    """Autograd's own error, or the gradient of what was computed."""
    x, y = (torch.randn(6, 4, requires_grad=True) for _ in range(2))
    with cl_kernels.use_backend(backend):
        expected = torch.autograd.grad(FILTERED[name](x, y, ids()), (x, y), allow_unused=True)
        changed = ids()
        loss = FILTERED[name](x, y, changed)
    changed.zero_()
    try:
        found = torch.autograd.grad(loss, (x, y), allow_unused=True)
    except RuntimeError as error:
        assert "modified by an inplace operation" in str(error)
    else:
        torch.testing.assert_close(found, expected)


def test_statistics_watch_the_ids_they_need():
    x, of = torch.randn(6, 4, requires_grad=True), ids()
    for primitive in PRIMITIVES:
        results = statistics(primitive, x, x * 2, 1.0, where=different(of))
        of.add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            sum(r.sum() for r in results).backward()


LOSSES = {
    "nt_xent": cl_kernels.nt_xent,
    "nt_xent, none": lambda x, y: cl_kernels.nt_xent(x, y, reduction="none").sum(),
    "info_nce": cl_kernels.info_nce,
    "info_nce, queue": lambda x, y: cl_kernels.info_nce(x, y, y),
    "info_nce, hardest": lambda x, y: cl_kernels.info_nce(x, y, hardest=2),
    "clip": lambda x, y: cl_kernels.clip(x, y, 3.0),
    "row_logsumexp": lambda x, y: cl_kernels.row_logsumexp(x, y, 2.0).sum(),
    "row_col_logsumexp": lambda x, y: sum(
        s.square().sum() for s in cl_kernels.row_col_logsumexp(x, y, 2.0)
    ),
    "self_logsumexp": lambda x, y: cl_kernels.self_logsumexp(x * y, 2.0).sum(),
    "topk": lambda x, y: cl_kernels.topk(x, y, 2).values.sum(),
    "hardest_negative": lambda x, y: cl_kernels.hardest_negative(x * y, ids()).values.sum(),
}
each_loss = pytest.mark.parametrize("name", LOSSES)


def pair():
    return torch.randn(6, 4), torch.randn(6, 4)


@each_loss
def test_func_grad(name):
    x, y = pair()
    found = torch.func.grad(LOSSES[name], argnums=(0, 1))(x, y)
    leaves = x.clone().requires_grad_(), y.clone().requires_grad_()
    expected = torch.autograd.grad(LOSSES[name](*leaves), leaves)
    torch.testing.assert_close(found, expected)


def test_func_grad_of_parameters():
    model = torch.nn.Linear(4, 3)
    x, y = pair()

    def loss(parameters):
        def embed(z):
            return torch.func.functional_call(model, parameters, (z,))

        return cl_kernels.nt_xent(embed(x), embed(y))

    parameters = {n: p.detach() for n, p in model.named_parameters()}
    found = torch.func.grad(loss)(parameters)
    cl_kernels.nt_xent(model(x), model(y)).backward()
    for n, p in model.named_parameters():
        torch.testing.assert_close(found[n], p.grad)


@each_loss
def test_second_derivatives_are_refused(name):
    x, y = pair()

    def slope(z):
        return torch.func.grad(lambda w: LOSSES[name](w, y))(z).square().sum()

    with pytest.raises(RuntimeError, match=r"double backward .* is not supported"):
        torch.func.grad(slope)(x)


@each_loss
def test_forward_mode_is_refused(name):
    x, y = pair()
    with pytest.raises(NotImplementedError, match="expected no tangent, got one: forward-mode"):
        torch.func.jvp(LOSSES[name], (x, y), (x, y))
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(y, y)
        with pytest.raises(NotImplementedError, match="expected no tangent, got one: forward-mode"):
            LOSSES[name](x, dual)


def test_a_tangent_of_the_scale_is_refused():
    x, y = pair()
    for f, name in ((lambda s: cl_kernels.row_logsumexp(x, y, s).sum(), "scale"),
                    (lambda s: cl_kernels.nt_xent(x, y, s), "temperature"),
                    (lambda s: cl_kernels.clip(x, y, s), "logit_scale")):  # fmt: skip
        one = torch.tensor(1.0)
        with pytest.raises(NotImplementedError, match=f"{name}: expected no tangent"):
            torch.func.jvp(f, (one,), (one,))


@each_loss
def test_vmap_is_refused(name):
    x, y = torch.randn(2, 6, 4), torch.randn(2, 6, 4)
    for f in (LOSSES[name], torch.func.grad(LOSSES[name])):
        with pytest.raises(NotImplementedError, match="expected no tensor under vmap, got one"):
            torch.vmap(f)(x, y)


REFUSED = {
    "jvp": lambda f, x: torch.func.jvp(f, (x,), (x,))[1],
    "vmap": lambda f, x: torch.vmap(f)(x[None]),
    "grad of grad": lambda f, x: torch.func.grad(lambda z: torch.func.grad(f)(z).sum())(x),
}


@pytest.mark.parametrize("transform", REFUSED)
@pytest.mark.parametrize("name", ["nt_xent", "info_nce, queue", "row_logsumexp", "topk"])
def test_refused_inside_of_torch_compile(name, transform):
    x, y = pair()

    def transformed(z):
        return REFUSED[transform](lambda w: LOSSES[name](w, y), z)

    torch._dynamo.reset()
    with pytest.raises(Exception, match=r"expected no t|double backward|vmap"):
        torch.compile(transformed, fullgraph=True, backend="aot_eager")(x)


@each_loss
def test_func_grad_inside_of_torch_compile(name):
    x, y = pair()
    slope = torch.func.grad(lambda z: LOSSES[name](z, y))
    torch._dynamo.reset()
    compiled = torch.compile(slope, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), slope(x))


def test_vjp_under_no_grad():
    x, y = pair()
    value, pull = torch.func.vjp(lambda z: cl_kernels.nt_xent(z, y), x)
    with torch.no_grad():
        (found,) = pull(torch.ones_like(value))
    torch.testing.assert_close(found, torch.func.grad(cl_kernels.nt_xent)(x, y))
    with pytest.raises(RuntimeError, match=r"unless it is called under torch.no_grad"):
        pull(torch.ones_like(value))
    with pytest.raises(NotImplementedError, match="expected no t"):
        torch.func.hessian(lambda z: cl_kernels.nt_xent(z, y))(x)


@pytest.mark.parametrize("option", ["query", "key", "ceiling"])
def test_a_guide_under_vmap_is_refused(option):
    x = torch.randn(4, 3)

    def f(batched):
        guide = {"query": x, "key": x, "ceiling": 0.5, option: batched}
        return cl_kernels.row_softplus_sum(x, x, guide=tuple(guide.values()))

    batch = torch.randn(2, 4) if option == "ceiling" else torch.randn(2, 4, 3)
    with pytest.raises(NotImplementedError, match=r"guide.*expected no tensor under vmap"):
        torch.vmap(f)(batch)


def test_gradients_under_vmap_are_refused():
    x, y = (z.requires_grad_() for z in pair())
    rows = cl_kernels.nt_xent(x, y, reduction="none")
    with pytest.raises(NotImplementedError, match="grad: expected no tensor under vmap"):
        torch.autograd.grad(rows, x, torch.eye(12), is_grads_batched=True)


def test_pair_logits_go_with_every_transform():
    x, y = pair()
    tangent = torch.func.jvp(cl_kernels.pair_logits, (x, y), (y, x))[1]
    torch.testing.assert_close(tangent, (x * x + y * y).sum(1))
    batched = torch.vmap(cl_kernels.pair_logits)(x[None], y[None])
    torch.testing.assert_close(batched[0], cl_kernels.pair_logits(x, y))
