"""Losses of matching pairs: bad inputs, edges, numbers and what their options mean."""

import pytest
import torch

import cl_kernels
from catalogue.family import FAMILY
from cl_kernels import decoupled, gist, hard_negative, qwen3_embedding, weighted_decoupled
from cl_kernels import multiple_negatives_ranking as ranking
from python_tests.helpers import assert_frobenius

B, D = 6, 5
VIEWS = [decoupled, weighted_decoupled, hard_negative]
NAMES = [
    "decoupled",
    "weighted_decoupled",
    "hard_negative",
    "multiple_negatives_ranking",
    "gist",
    "qwen3_embedding",
]
EVERY = ("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc")
each_loss = pytest.mark.parametrize("case", [FAMILY[name] for name in NAMES], ids=NAMES)


def trained(*shape):
    return torch.randn(*shape, requires_grad=True)


def rows(*shape, count=2):
    return [trained(*shape) for _ in range(count)]


def gradients(loss, *inputs):
    return torch.autograd.grad(loss, inputs, materialize_grads=True)


def guided(x, y, **options):
    return gist(x, y, x.detach().nan_to_num(), y.detach(), **options)


# Each loss of two matrices alone.
OF_TWO = {
    "decoupled": decoupled,
    "decoupled, per view": lambda x, y, **o: decoupled(x, y, partition="per_view", **o),
    "weighted_decoupled": weighted_decoupled,
    "hard_negative": hard_negative,
    "hard_negative, beta 0": lambda x, y, **o: hard_negative(x, y, beta=0.0, **o),
    "ranking": ranking,
    "ranking, hardness": lambda x, y, **o: ranking(
        x, y, hardness_mode="all_negatives", hardness_strength=3.0, **o
    ),
    "ranking, anchors": lambda x, y, **o: ranking(x, y, directions=EVERY[:2], **o),
    "gist": guided,
    "qwen3_embedding": qwen3_embedding,
}
of_two = pytest.mark.parametrize("loss", OF_TWO.values(), ids=OF_TWO)


@of_two
@pytest.mark.parametrize("count", [0, 1])
def test_without_negatives_the_loss_is_zero(backend, loss, count):
    x, y = rows(count, D)
    for reduction in ("mean", "sum", "none"):
        value = loss(x, y, reduction=reduction, backend=backend)
        assert torch.equal(value, torch.zeros_like(value))
        for grad in gradients(value.sum(), x, y):
            assert torch.equal(grad, torch.zeros_like(grad))


@of_two
def test_rows_reductions(loss):
    x, y = rows(B, D)
    each = loss(x, y, reduction="none")
    assert each.shape in ((B,), (2 * B,))
    torch.testing.assert_close(loss(x, y, reduction="sum"), each.sum())
    torch.testing.assert_close(loss(x, y), each.mean())


@of_two
def test_bad_embeddings(loss):
    x, y = rows(B, D)
    with pytest.raises(ValueError, match="as many rows as"):
        loss(x, y[1:])
    with pytest.raises(ValueError, match="the width of"):
        loss(x, trained(B, D + 1))
    with pytest.raises(TypeError, match="the dtype of"):
        loss(x, y.double())
    with pytest.raises(TypeError, match="expected one of"):
        loss(x.detach().long(), y.detach().long())
    with pytest.raises(ValueError, match="reduction: expected"):
        loss(x, y, reduction="median")


@of_two
def test_a_nan_is_not_hidden(loss):
    x, y = rows(B, D)
    with torch.no_grad():
        x[2, 1] = torch.nan
    assert loss(x, y).isnan()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("sign", [1, -1], ids=["aligned", "anti-aligned"])
@each_loss
def test_low_temperature(backend, case, sign, dtype):
    """The pairs are nearly (anti-)parallel: logits from -100 to 100."""
    torch.manual_seed(0)
    (first, x), (second, _), *more = case.arguments("plain", 32, 16).items()
    given = {first: x, second: sign * (x + 0.05 * torch.randn_like(x)), **dict(more)}
    given = {k: v.to(dtype) for k, v in given.items()}
    sharp = {"scale": 100.0} if case.ours is ranking else {"temperature": 0.01}

    def evaluate(form, dtype, **options):
        x = {k: v.to(dtype).requires_grad_() for k, v in given.items()}
        value = form(**x, **sharp, **options)
        return value.detach(), torch.autograd.grad(value, (x[first], x[second]))

    value, grads = evaluate(case.ours, dtype, backend=backend)
    truth, expected = evaluate(case.textbook, torch.float64)
    if dtype == torch.bfloat16:  # finite; what it may be off is a matter of the tiles' rounding
        assert value.isfinite() and all(g.isfinite().all() for g in grads)
        return
    torch.testing.assert_close(value.double(), truth, rtol=5e-5, atol=5e-5)
    for grad, exact in zip(grads, expected, strict=True):
        if exact.norm() > 1e-6:
            assert_frobenius(grad, exact, 5e-4)
        else:
            assert grad.norm() < 1e-5


@each_loss
def test_all_rows_equal(case):
    arguments = case.arguments("plain", B, D)
    for name in list(arguments)[:2]:
        arguments[name] = torch.ones(B, D, requires_grad=True)
    value = case.ours(**arguments)
    torch.testing.assert_close(value, case.textbook(**arguments), rtol=1e-4, atol=1e-5)
    for grad in gradients(value, *list(arguments.values())[:2]):
        assert grad.isfinite().all()


# Decoupled.


def test_candidates_may_be_a_list():
    x, y, z = rows(B, D, count=3)
    listed = ranking(x, [y, z])
    assert torch.equal(listed, ranking(x, torch.stack((y, z))))
    assert torch.equal(ranking(x, (y,)), ranking(x, y))
    module = cl_kernels.MultipleNegativesRankingLoss(scale=20.0)
    assert torch.equal(module(x, [y, z]), listed)
    assert torch.equal(
        module(x, y, ids=torch.arange(B) // 2), ranking(x, y, ids=torch.arange(B) // 2)
    )


def test_duplicates_are_no_negatives_but_own_hard_negatives_stay():
    x, y, z = rows(B, D, count=3)
    same = torch.zeros(B, dtype=torch.long)
    assert ranking(x, y, ids=same) == 0
    normal = [torch.nn.functional.normalize(t) for t in (x, y, z)]
    own = 20 * (normal[0] * (normal[2] - normal[1])).sum(1)
    for directions in (EVERY[:1], EVERY[::3]):
        loss = ranking(x, [y, z], ids=same, directions=directions, reduction="none")
        torch.testing.assert_close(loss, torch.nn.functional.softplus(own), rtol=1e-4, atol=1e-5)
        assert all(grad.isfinite().all() for grad in gradients(loss.sum(), x, y, z))


def test_joint_counts_the_positive_for_either_direction():
    x, y = rows(1, D)
    for directions in (EVERY[::2], EVERY):
        value = ranking(x, y, directions=directions)
        torch.testing.assert_close(value, torch.tensor(2.0).log())
    assert ranking(x, y, directions=EVERY[::2], partition_mode="per_direction") == 0


def test_hardness_without_strength_or_hard_negatives_is_none():
    x, y = rows(B, D)
    assert ranking(x, y, hardness_mode="all_negatives") == ranking(x, y)
    hard = ranking(x, y, hardness_mode="hard_negatives", hardness_strength=5.0)
    assert hard == ranking(x, y)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"scale": 0.0}, ValueError, "scale: expected a number above 0, got 0.0"),
        ({"scale": torch.tensor(-1.0)}, ValueError, "scale: expected a number above 0, got -1.0"),
        ({"directions": "query_to_doc"}, TypeError, "directions: expected a sequence"),
        ({"directions": ()}, ValueError, 'directions: expected "query_to_doc"'),
        ({"directions": EVERY[1:]}, ValueError, 'directions: expected "query_to_doc"'),
        ({"directions": ("query_to_doc", "up")}, ValueError, "directions: expected .* got 'up'"),
        ({"partition_mode": "apart"}, ValueError, "partition_mode: expected"),
        (
            {"partition_mode": "per_direction", "directions": EVERY},
            ValueError,
            'partition_mode: expected "joint" with',
        ),
        ({"hardness_mode": "all"}, ValueError, "hardness_mode: expected"),
        ({"hardness_strength": -1.0}, ValueError, "hardness_strength: expected at least 0"),
        ({"hardness_strength": "9"}, TypeError, "hardness_strength: expected a number"),
        ({"ids": torch.arange(B - 1)}, ValueError, "ids: expected one label for each of the 6"),
        ({"ids": torch.ones(B)}, TypeError, "ids: expected an integer tensor"),
        ({"normalize": 1}, TypeError, "normalize: expected True or False"),
    ],
    ids=str,
)
def test_bad_options_of_ranking(options, error, message):
    x, y = rows(B, D)
    with pytest.raises(error, match=message):
        ranking(x, y, **options)


def test_bad_candidates():
    x, y = rows(B, D)
    with pytest.raises(TypeError, match="candidates: expected a tensor or a sequence"):
        ranking(x, None)
    with pytest.raises(TypeError, match=r"candidates: expected .* got an empty one"):
        ranking(x, [])
    with pytest.raises(ValueError, match=r"candidates\[1\]: expected as many rows"):
        ranking(x, [y, y[1:]])


# GIST.


def test_the_guide_drops_what_it_finds_closer():
    """Anchor 0's guide is nearest to document 1, which is no negative of it."""
    x, y = torch.eye(3), torch.eye(3)
    guide_x = torch.eye(3)
    guide_y = torch.tensor([[0.8, 0.6, 0.0], [1.0, 0.0, 0.0], [0.0, 0.6, 0.8]])
    only = {"contrast_anchors": False, "contrast_positives": False, "reduction": "none"}
    each = gist(x, y, guide_x, guide_y, temperature=1.0, **only)
    one = torch.tensor(-1.0).exp()
    # Anchor 1 has similarity 0 to its own and 0.6 to the others': nothing is left.
    torch.testing.assert_close(each, torch.stack((one, 0 * one, 2 * one)).log1p())
    each = gist(x, y, guide_x, guide_y, temperature=1.0, margin=-1.0, **only)
    torch.testing.assert_close(each, (2 * one).log1p().expand(3))
    scores = torch.tensor([1.5, -2.0, 1.5])
    each = gist(x, y, guide_x, guide_y, temperature=1.0, guide_scores=scores, **only)
    torch.testing.assert_close(each, torch.stack((2 * one, 0 * one, 2 * one)).log1p())


def test_the_guide_is_not_trained():
    x, y, gx, gy = rows(B, D, count=4)
    scores = trained(B)
    loss = gist(x, y, gx, gy, guide_scores=scores)
    assert all(not grad.any() for grad in gradients(loss, gx, gy, scores))


def test_bad_guides():
    x, y, gx, gy = rows(B, D, count=4)
    with pytest.raises(ValueError, match="guide_negatives: expected together"):
        gist(x, y, gx, gy, x)
    with pytest.raises(ValueError, match="negatives: expected together"):
        gist(x, y, gx, gy, None, gx)
    with pytest.raises(ValueError, match="guide_anchors: expected as many rows as anchors, 6"):
        gist(x, y, gx[1:], gy)
    with pytest.raises(ValueError, match="guide_positives: expected the width of guide_anchors"):
        gist(x, y, gx, trained(B, 3))
    with pytest.raises(ValueError, match="guide_negatives: expected as many rows as negatives, 2"):
        gist(x, y, gx, gy, x[:2], gx[:3])
    with pytest.raises(ValueError, match="margin_strategy: expected"):
        gist(x, y, gx, gy, margin_strategy="both")
    with pytest.raises(ValueError, match="margin: expected a finite number"):
        gist(x, y, gx, gy, margin=float("nan"))
    with pytest.raises(TypeError, match="contrast_anchors: expected True or False"):
        gist(x, y, gx, gy, contrast_anchors=None)
    with pytest.raises(ValueError, match=r"guide_scores: expected .* \[6\]"):
        gist(x, y, gx, gy, guide_scores=0.5)
    with pytest.raises(ValueError, match="guide_scores: expected"):
        gist(x, y, gx, gy, guide_scores=torch.ones(5))
    with pytest.raises(ValueError, match="guide_scores: expected numbers, got a NaN"):
        gist(x, y, gx, gy, guide_scores=torch.full((B,), torch.nan))
    with pytest.raises(ValueError, match="guide_anchors: expected numbers, got a NaN"):
        gist(x, y, gx * torch.nan, gy)


def test_a_guide_of_another_precision():
    x, y, gx, gy = rows(B, D, count=4)
    torch.testing.assert_close(gist(x, y, gx.double(), gy.double()), gist(x, y, gx, gy))


# Qwen3 Embedding.


def test_curated_negatives_are_spared():
    x, y = rows(B, D)
    own = x.detach()[:, None]  # closer to the query than any positive
    options = {"margin": -5.0, "temperature": 0.1}  # nothing else is left
    assert qwen3_embedding(x, y, **options) == 0
    assert qwen3_embedding(x, y, own, mask_negatives=True, **options) == 0
    assert qwen3_embedding(x, y, own, **options) > 0.1


def test_equal_documents_without_a_margin():
    """Of documents that are equal, none is a negative of the other's query: the bound is strict."""
    x = torch.eye(4)
    y = torch.eye(4)[[0, 0, 1, 2]]
    ids = torch.tensor([0, 0, 1, 2])
    x = x[[0, 0, 1, 2]]
    strict = qwen3_embedding(x, y, margin=0.0, temperature=0.1)
    torch.testing.assert_close(strict, qwen3_embedding(x, y, ids=ids, temperature=0.1))


def test_no_own_negatives_at_all():
    x, y = rows(B, D)
    none = trained(B, 0, D)
    value = qwen3_embedding(x, y, none)
    torch.testing.assert_close(value, qwen3_embedding(x, y))
    assert all(grad.isfinite().all() for grad in gradients(value, x, y, none))


def test_bad_options_of_qwen3():
    x, y = rows(B, D)
    with pytest.raises(ValueError, match=r"negatives: expected a tensor of shape \[B, K, D\]"):
        qwen3_embedding(x, y, y)
    with pytest.raises(ValueError, match="negatives: expected as many rows as query"):
        qwen3_embedding(x, y, trained(B - 1, 2, D))
    with pytest.raises(ValueError, match="negatives: expected the width"):
        qwen3_embedding(x, y, trained(B, 2, D + 1))
    with pytest.raises(ValueError, match="margin: expected a finite number"):
        qwen3_embedding(x, y, margin=float("inf"))
    with pytest.raises(TypeError, match="mask_negatives: expected True or False"):
        qwen3_embedding(x, y, mask_negatives=1)
    with pytest.raises(ValueError, match="ids: expected one label"):
        qwen3_embedding(x, y, ids=torch.arange(3))
