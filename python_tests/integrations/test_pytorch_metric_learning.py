"""Our classes in the place of pytorch-metric-learning's, and what is left to the library."""

import copy

import pytest
import torch

pytest.importorskip("pytorch_metric_learning", "2.9")

from pytorch_metric_learning import distances, miners, reducers, regularizers
from pytorch_metric_learning import losses as theirs

from cl_kernels import integrations
from cl_kernels.integrations import pytorch_metric_learning as ours
from cl_kernels.integrations.pytorch_metric_learning import pairs

N, WIDTH, CLASSES = 30, 12, 7
OF_PAIRS = ["NTXentLoss", "SupConLoss", "MultiSimilarityLoss", "TripletMarginLoss"]
OF_CLASSES = ["ArcFaceLoss", "CosFaceLoss", "NormalizedSoftmaxLoss"]


@pytest.fixture
def streamed(monkeypatch):
    """Fails where the library would make a matrix."""

    def refuse(*arguments):
        raise AssertionError("a matrix of distances")

    monkeypatch.setattr(distances.BaseDistance, "forward", refuse)


def rows(count=N):
    return torch.randn(count, WIDTH, dtype=torch.float64)


def labels(count=N, classes=5):
    return torch.randint(classes, (count,))


def values(loss, call, *trained):
    trained = [x.clone().requires_grad_() for x in trained]
    value = call(loss, *trained)
    value.backward()
    learned = [p.grad for p in loss.parameters() if p.grad is not None]
    return value.detach(), [x.grad for x in trained], learned


def assert_alike(name, call, *trained, make=None, **settings):
    their = (make or getattr(theirs, name))(**settings)
    mine = getattr(ours, name)(**copy.deepcopy(settings))
    mine.load_state_dict(their.state_dict())
    assert isinstance(mine, type(their)) and type(mine).__name__ == name
    expected = values(their, call, *trained)
    torch.testing.assert_close(
        values(mine, call, *trained), expected, rtol=1e-5, atol=1e-8
    )  # it adds 1e-7 to counts


def reduced(name):
    yield {}
    if name == "TripletMarginLoss":
        yield {"margin": 0.4, "smooth_loss": True}
        yield {"reducer": reducers.MeanReducer()}
        yield {"distance": distances.CosineSimilarity()}
        yield {"distance": distances.LpDistance(normalize_embeddings=False, power=2)}
    else:
        yield {"reducer": reducers.ThresholdReducer(low=0.3)}
        yield {"distance": distances.DotProductSimilarity(normalize_embeddings=False)}
        yield {"embedding_regularizer": regularizers.LpRegularizer()}


@pytest.mark.parametrize("name", OF_PAIRS)
@pytest.mark.parametrize("classes", [1, 5, 12, N])
def test_of_pairs(name, classes):
    y = labels(classes=classes) if classes < N else torch.arange(N)
    for settings in reduced(name):
        assert_alike(name, lambda loss, x: loss(x, y), rows(), **settings)


@pytest.mark.parametrize("name", OF_PAIRS[:3])
@pytest.mark.parametrize("classes", [1, 5])
def test_of_reference_rows(name, classes):
    y, others = labels(classes=classes), labels(41, classes)
    for settings in reduced(name):
        assert_alike(
            name,
            lambda loss, x, keys: loss(x, y, ref_emb=keys, ref_labels=others),
            rows(), rows(41), **settings,
        )  # fmt: skip


@pytest.mark.parametrize("name", OF_PAIRS)
def test_rows_that_meet_themselves(name):
    """The library tells it by the labels' identity."""
    y = labels()
    again = y.clone()
    for given in (y, again):
        for others in (lambda x: x, lambda x: 2 * x.detach()):
            assert_alike(
                name,
                lambda loss, x, o=others, g=given: loss(x, y, ref_emb=o(x), ref_labels=g),
                rows(),
            )


@pytest.mark.parametrize("name", OF_PAIRS)
@pytest.mark.parametrize("step", [0.5, 1.0])
def test_labels_that_are_floats(name, step):
    y = labels() * step
    assert_alike(name, lambda loss, x: loss(x, y), rows())


@pytest.mark.parametrize("name", OF_PAIRS[:3])
@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_hardly_a_pair(name, count):
    for y in (torch.zeros(count).long(), torch.arange(count)):
        if count:
            assert_alike(name, lambda loss, x, y=y: loss(x, y) + 0 * x.sum(), rows(count))
    mine, their = (getattr(of, name)(reducer=reducers.DoNothingReducer()) for of in (ours, theirs))
    x, y = rows(5), torch.arange(5) // 2
    got, expected = (loss(x, y)["loss"]["losses"] for loss in (mine, their))
    assert got.shape == expected.shape


@pytest.mark.parametrize("name", OF_PAIRS)
def test_without_a_matrix(streamed, name):
    y = labels()
    loss = getattr(ours, name)()
    loss(rows(), y)
    with pytest.raises(AssertionError, match="a matrix of distances"):
        getattr(theirs, name)()(rows(), y)
    wrapped = theirs.SelfSupervisedLoss(loss)
    wrapped(rows(), rows())
    if name != "TripletMarginLoss":
        loss(rows(), y, ref_emb=rows(9), ref_labels=labels(9))
        memory = ours.CrossBatchMemory(getattr(ours, name)(), WIDTH, memory_size=50)
        memory.double()(rows(), y)


@pytest.mark.parametrize("name", OF_PAIRS)
def test_what_is_left_to_the_library(name):
    """Miners, other distances, other ways to count triplets: its own numbers."""
    y, x = labels(), rows()
    found = miners.MultiSimilarityMiner()(x, y)
    assert_alike(name, lambda loss, x: loss(x, y, found), x)
    assert_alike(name, lambda loss, x: loss(x, y), x, distance=distances.LpDistance(p=1))
    if name == "TripletMarginLoss":
        assert_alike(name, lambda loss, x: loss(x, y), x, swap=True)
        assert_alike(name, lambda loss, x: loss(x, y), x, reducer=reducers.ThresholdReducer(low=0))
        others = labels(9)
        assert_alike(name, lambda loss, x, z: loss(x, y, ref_emb=z, ref_labels=others), x, rows(9))


@pytest.mark.parametrize("name", OF_PAIRS[:3])
def test_self_supervised(name):
    for symmetric in (True, False):
        mine, their = (
            theirs.SelfSupervisedLoss(getattr(of, name)(), symmetric=symmetric)
            for of in (ours, theirs)
        )
        x, z = rows(), rows()
        expected = values(their, lambda loss, *views: loss(*views), x, z)
        torch.testing.assert_close(values(mine, lambda loss, *views: loss(*views), x, z), expected)


@pytest.mark.parametrize("name", OF_PAIRS[:3])
@pytest.mark.parametrize("size", [30, 50, 200])
def test_cross_batch_memory(name, size):
    """Batch after batch, until the memory has gone round; then with a mask, and with a miner."""
    mine, their = (
        of.CrossBatchMemory(getattr(of, name)(), WIDTH, memory_size=size).double()
        for of in (ours, theirs)
    )
    for _ in range(5):
        x, y = rows(25), labels(25)
        results = [values(m, lambda loss, x, y=y: loss(x, y), x) for m in (mine, their)]
        torch.testing.assert_close(*results)
        for got, expected in zip(mine.buffers(), their.buffers(), strict=True):
            assert torch.equal(got, expected)
    x, y, mask = rows(25), labels(25), torch.arange(25) % 2 == 0
    results = [values(m, lambda loss, x: loss(x, y, enqueue_mask=mask), x) for m in (mine, their)]
    torch.testing.assert_close(*results)
    mine.miner = their.miner = miners.PairMarginMiner()
    torch.testing.assert_close(*[values(m, lambda loss, x: loss(x, y), x) for m in (mine, their)])


@pytest.mark.parametrize("name", OF_CLASSES)
def test_of_classes(name):
    y, x = labels(classes=CLASSES), rows()
    settings = {"num_classes": CLASSES, "embedding_size": WIDTH}
    further = [{}, {"weight_regularizer": regularizers.RegularFaceRegularizer()}]
    further += [{"reducer": reducers.ThresholdReducer(low=0.5)}]
    if name != "NormalizedSoftmaxLoss":
        further += [{"margin": 0.5 if "Cos" in name else 40.0, "scale": 16}]
    for more in further:
        assert_alike(name, lambda loss, x: loss(x, y), x, **settings, **more)
    found = miners.MultiSimilarityMiner()(x, y)
    assert_alike(name, lambda loss, x: loss(x, y, found), x, **settings)
    if name == "NormalizedSoftmaxLoss":
        unlike = [distances.DotProductSimilarity(normalize_embeddings=False)]
    else:
        unlike = []
    if name == "ArcFaceLoss":
        assert_alike(name, lambda loss, x: loss(x, y), x, **settings, margin=170)
    for distance in (*unlike, distances.CosineSimilarity(power=2), distances.CosineSimilarity(p=1)):
        assert_alike(name, lambda loss, x: loss(3 * x, y), x, **settings, distance=distance)


def test_angles_are_noted():
    y, x = labels(classes=CLASSES), rows()
    settings = {"num_classes": CLASSES, "embedding_size": WIDTH, "collect_stats": True}
    for name in OF_CLASSES[:2]:
        mine, their = (getattr(of, name)(**settings).double() for of in (ours, theirs))
        mine.load_state_dict(their.state_dict())
        for loss in (mine, their):
            loss(x, y)
        assert mine.avg_angle == pytest.approx(their.avg_angle)


def test_a_batch_whose_pairs_are_millions(streamed):
    """8 rows a class: their NT-Xent compares each positive pair with all negatives of the batch."""
    x, y = torch.randn(1024, 32, requires_grad=True), torch.arange(1024) // 8
    loss = ours.NTXentLoss()(x, y)
    loss.backward()
    unit = torch.nn.functional.normalize(x.detach().double(), dim=1)
    logits = unit @ unit.T / 0.07
    same = (y[:, None] == y).fill_diagonal_(False)
    negatives = logits.masked_fill(y[:, None] == y, -torch.inf).logsumexp(1)
    each = torch.nn.functional.softplus(negatives[:, None] - logits)[same]
    torch.testing.assert_close(loss.double(), each.mean(), rtol=1e-5, atol=0)


def test_patch():
    names = [*OF_PAIRS, *OF_CLASSES, "CrossBatchMemory"]
    originals = {name: getattr(theirs, name) for name in names}
    integrations.patch("pytorch_metric_learning")
    try:
        assert all(getattr(theirs, name) is getattr(ours, name) for name in names)
        assert pairs.theirs.NTXentLoss is ours.NTXentLoss
        torch.testing.assert_close(
            theirs.NTXentLoss()(x := rows(), y := labels()), originals["NTXentLoss"]()(x, y)
        )
    finally:
        integrations.unpatch("pytorch_metric_learning")
    assert all(getattr(theirs, name) is originals[name] for name in names)
    with pytest.raises(ValueError, match="embeddings: expected at most the 8 rows of the memory"):
        ours.CrossBatchMemory(ours.SupConLoss(), WIDTH, memory_size=8)(rows(), labels())
