"""Every public function once, forward and backward, against the reference backend.

Small and free of everything but torch: ``make compat`` runs it with the oldest and newest torch.
"""

from copy import deepcopy
from dataclasses import asdict, is_dataclass

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

import cl_kernels
from catalogue.family import FAMILY
from cl_kernels import evaluation
from python_tests.helpers import unit_rows

LABELS = torch.arange(24) % 4
POSITIVES = torch.arange(24)
ENCODER = torch.nn.Linear(8, 8, bias=False)
ONE_EACH = cl_kernels.CSR(torch.arange(25), POSITIVES)


def checked(x, y):
    with cl_kernels.debug_checks():
        return cl_kernels.nt_xent(x, y)


def filtered(x, y):
    where = cl_kernels.PairFilter(LABELS, LABELS, "different")
    return cl_kernels.row_logsumexp(x, y, 3.0, where=where)


def without(x, y):
    return cl_kernels.topk(x, y, 3, exclude=ONE_EACH)


def hardening(x, y):
    schedule = cl_kernels.MiningSchedule(start=1.0, end=0.2, steps=10)
    return cl_kernels.info_nce(x, y, hardest=schedule.count(5, 23))


def in_a_backend(x, y):
    with cl_kernels.use_backend("chunked"):
        return cl_kernels.clip(x, y, 3.0)


def of_two_widths(x, y):
    return cl_kernels.matryoshka(cl_kernels.nt_xent, x, y, dims=(8, 3), weights=(1, 0.5))


def grad_cached(call):
    """The loss, and the gradient that the call has put into the encoder's ``.grad``."""

    def trained(x, y):
        encoder = deepcopy(ENCODER)
        return call(encoder, x, y), encoder.weight.grad

    return trained


def cached(encoder, x, y):
    return cl_kernels.GradCache(encoder, cl_kernels.nt_xent, chunk_size=7).step(x, y)


def step(encoder, x, y):
    return cl_kernels.grad_cache_step(encoder, (x, y), cl_kernels.nt_xent, chunk_size=7)


def learned_temperature(x, y):
    return cl_kernels.info_nce(x, y, temperature=(x * x).sum() / len(x))


def with_options(x, y):
    guide = x.detach(), y.detach(), 0.5
    return cl_kernels.row_softplus_sum(
        x, y, 3.0, normalize=True, below=0.9, above=-0.9, query_bias=x[:, 0], key_bias=-1.0,
        guide=guide,
    )  # fmt: skip


# What gives x a gradient; options that run other code follow their function.
TRAINED = {
    "CSR": without,
    "ClipLoss": lambda x, y: cl_kernels.ClipLoss()(x, y, 3.0),
    "GradCache": grad_cached(cached),
    "InfoNCELoss": lambda x, y: cl_kernels.InfoNCELoss()(x, y),
    "MatryoshkaLoss": lambda x, y: cl_kernels.MatryoshkaLoss(cl_kernels.nt_xent, (8, 3))(x, y),
    "MiningSchedule": hardening,
    "NTXentLoss": lambda x, y: cl_kernels.NTXentLoss()(x, y),
    "PairFilter": filtered,
    "TopK": lambda x, y: cl_kernels.TopK(*cl_kernels.topk(x, y, 5, normalize=False)),
    "clip": lambda x, y: cl_kernels.clip(x, y, 3.0),
    "contrast": lambda x, y: cl_kernels.contrast(cl_kernels.row_logsumexp(x, y), x[:, 0]),
    "HingeSum": lambda x, y: cl_kernels.HingeSum(*cl_kernels.row_hinge_sum(x, y)),
    "SigLipLoss": lambda x, y: cl_kernels.SigLipLoss()(x, y, 3.0, -2.0),
    "row_col_hinge_sum": lambda x, y: cl_kernels.row_col_hinge_sum(x, y),
    "row_col_softplus_sum": lambda x, y: cl_kernels.row_col_softplus_sum(x, y),
    "row_hinge_sum": lambda x, y: cl_kernels.row_hinge_sum(x, y),
    "row_softplus_sum": lambda x, y: cl_kernels.row_softplus_sum(x, y),
    "row_softplus_sum with every option": with_options,
    "self_hinge_sum": lambda x, y: cl_kernels.self_hinge_sum(x),
    "self_softplus_sum": lambda x, y: cl_kernels.self_softplus_sum(x),
    "siglip": lambda x, y: cl_kernels.siglip(x, y, 3.0, -2.0),
    "debug_checks": checked,
    "grad_cache_step": grad_cached(step),
    "hardest_negative": lambda x, y: cl_kernels.hardest_negative(x, LABELS),
    "hardest_positive": lambda x, y: cl_kernels.hardest_positive(x, LABELS),
    "info_nce": lambda x, y: cl_kernels.info_nce(x, y, y.roll(1, 0)),
    "info_nce of the hardest": lambda x, y: cl_kernels.info_nce(x, y, hardest=3),
    "info_nce, temperature trained": learned_temperature,
    "matryoshka": of_two_widths,
    "nt_xent": lambda x, y: cl_kernels.nt_xent(x, y),
    "pair_logits": lambda x, y: cl_kernels.pair_logits(x, y, 3.0),
    "row_col_logsumexp": lambda x, y: cl_kernels.row_col_logsumexp(x, y, 3.0),
    "row_logsumexp": lambda x, y: cl_kernels.row_logsumexp(x, y, 3.0),
    "row_logsumexp of frozen keys": lambda x, y: cl_kernels.row_logsumexp(x, y, (x * x).mean()),
    "self_logsumexp": lambda x, y: cl_kernels.self_logsumexp(x, 3.0),
    "semi_hard_negative": lambda x, y: cl_kernels.semi_hard_negative(x, LABELS),
    "topk": lambda x, y: cl_kernels.topk(x, y, 3),
    "use_backend": in_a_backend,
}


def of_family(case):
    """The loss of x in place of its first embeddings, which are like it; the others are made here,
    before a test may have changed torch's defaults."""
    torch.manual_seed(0)
    first, *others = case.arguments("plain", 24, 8).items()
    return lambda x, y: case.ours(**{first[0]: x, **dict(others)}).float()


TRAINED |= {name: of_family(loss) for name, loss in FAMILY.items()}
# Which python_tests/losses/test_family.py holds against their functions.
MODULES = {loss.module.__name__ for loss in FAMILY.values() if loss.module is not None}


def mined(x, y):
    found = cl_kernels.mine_hard_negatives(x, y, POSITIVES, num_negatives=4)
    return found.indices, found.scores, found.counts


def margins(x, y):
    found = cl_kernels.mine_hard_negatives(
        x, y, POSITIVES, relative_margin=0.1, absolute_margin=0.1, max_score=0.9
    )
    return found.indices, found.scores


def softmax_sampling(x, y):
    found = cl_kernels.mine_hard_negatives(
        x, y, POSITIVES, sampling="softmax", sampling_temperature=1e-6, range_max=3
    )
    return found.indices, found.scores


def explained(x, y):
    return [plan.flops for plan in cl_kernels.explain(cl_kernels.clip, x, y, 3.0).plans]


def calibrated(x, y):
    genuine = cl_kernels.pair_logits(x, y, 1.0)
    return evaluation.calibrate_threshold(genuine, genuine - 0.5, false_accept_rate=0.2)


def calibrated_gallery(x, y):
    return evaluation.calibrate_gallery(x, LABELS, false_reject_rate=0.2)


def retrieved(x, y):
    relevance = evaluation.label_relevance(LABELS, LABELS)
    return dict(evaluation.retrieval_metrics(x, y, relevance, at=(1, 5)))


def looked_at(x, y):
    return evaluation.contrastive_metrics(x, labels=LABELS, temperature=0.1).as_dict()


def in_range(x, y):
    (offsets, keys), scores = cl_kernels.range_search(x, y, above=0.1)
    return offsets, keys, scores


# What does not.
DETACHED = {
    "BestPairs": lambda x, y: cl_kernels.best_pairs(x, y, k=9),
    "InRange": in_range,
    "best_pairs": lambda x, y: cl_kernels.best_pairs(x, k=9),
    "duplicate_groups": lambda x, y: [cl_kernels.duplicate_groups(x, above=0.3)],
    "range_search": in_range,
    "Calibration": calibrated,
    "ContrastiveMetrics": lambda x, y: evaluation.contrastive_metrics(x, y, temperature=0.1),
    "DriftReport": lambda x, y: evaluation.embedding_drift(x, y, k=3),
    "KNNPrediction": lambda x, y: evaluation.knn_classify(x, y, LABELS, 5),
    "LabelRelevance": retrieved,
    "MinedNegatives": mined,
    "Norms": lambda x, y: evaluation.embedding_drift(x, y, k=3).norms_after,
    "RetrievalMetrics": retrieved,
    "__version__": lambda x, y: [len(cl_kernels.__version__.split("."))],
    "calibrate_gallery": calibrated_gallery,
    "calibrate_threshold": calibrated,
    "contrastive_metrics": looked_at,
    "doctor": lambda x, y: [len(str(cl_kernels.doctor())) > 0],
    "embedding_drift": lambda x, y: evaluation.embedding_drift(x, y, k=3),
    "explain": explained,
    "knn_accuracy": lambda x, y: [evaluation.knn_accuracy(x, LABELS, k=3)],
    "knn_classify": lambda x, y: evaluation.knn_classify(x, y, LABELS, 5),
    "label_relevance": retrieved,
    "mean_average_precision": lambda x, y: [evaluation.mean_average_precision(x, LABELS)],
    "mine_hard_negatives": mined,
    "mine_hard_negatives below margins": margins,
    "mine_hard_negatives by chance": softmax_sampling,
    "retrieval_metrics": retrieved,
}


def test_nothing_public_is_forgotten():
    public = {*cl_kernels.__all__, *evaluation.__all__}
    assert TRAINED.keys() | DETACHED.keys() | MODULES >= public
    assert not TRAINED.keys() & DETACHED.keys()


def run(call, backend, x, y):
    """The results, and the gradients of x for all of them."""
    x = x.detach().requires_grad_()
    with cl_kernels.use_backend(backend):
        results = call(x, y)
        results = tree_leaves(asdict(results) if is_dataclass(results) else results)
        trained = [r for r in results if isinstance(r, Tensor) and r.requires_grad]
        if trained:
            # Of numbers of any size: a loss of 43 is rounded by 1e-6 of a turn.
            sum((r / 64).sin().sum() for r in trained).backward()
    plain = [r.detach() if isinstance(r, Tensor) else r for r in results]
    return plain, x.grad


@pytest.mark.parametrize("name", [*TRAINED, *DETACHED])
def test_agrees_with_the_reference(name, backend):
    call = (TRAINED | DETACHED)[name]
    x, y = unit_rows(24, 8), unit_rows(24, 8)
    results, grad = run(call, backend, x, y)
    expected, expected_grad = run(call, "reference", x, y)
    assert len(results) > 0 and (grad is not None) == (name in TRAINED)
    torch.testing.assert_close(results, expected, rtol=2e-5, atol=1e-6)
    torch.testing.assert_close(grad, expected_grad, rtol=1e-4, atol=1e-6)
