"""Forms of the losses that their catalogue lines do not have: captions, more views, lists."""

import pytest
import torch
import torch.nn.functional as F

from catalogue import eager, textbook
from catalogue.losses import LOSSES, overlapping, several
from cl_kernels import CSR, PairFilter, clip, info_nce, nt_xent, siglip
from python_tests.helpers import unit_rows, views

pytestmark = pytest.mark.usefixtures("nan_filled_memory")
B, D = 14, 12


def doubles(*shapes):
    return [torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


def assert_same(ours, truth, leaves):
    torch.testing.assert_close(ours, truth, rtol=1e-11, atol=1e-12)
    upstream = torch.randn_like(truth)
    found = torch.autograd.grad(ours, leaves, upstream)
    torch.testing.assert_close(found, torch.autograd.grad(truth, leaves, upstream))


class TestCaptions:
    """Each caption of each image: the others of its image are not there."""

    @staticmethod
    def textbook(images, captions, scale, reduction="mean"):
        images, captions = F.normalize(images, dim=-1), F.normalize(captions, dim=-1)
        losses = []
        for i, image in enumerate(images):
            others = torch.cat([captions[:i], captions[i + 1 :]]).flatten(0, 1)
            for caption in captions[i]:
                of_image = scale * torch.cat([caption[None], others]) @ image
                rest = torch.cat([images[:i], images[i + 1 :]])
                of_text = scale * torch.cat([image[None], rest]) @ caption
                first = torch.tensor(0)
                losses.append(
                    (F.cross_entropy(of_image, first) + F.cross_entropy(of_text, first)) / 2
                )
        losses = torch.stack(losses).view(captions.shape[:2]).mean(1)
        return {"none": losses, "mean": losses.mean(), "sum": losses.sum()}[reduction]

    @pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
    def test_against_the_textbook(self, backend, reduction):
        images, captions = doubles((B, D), (B, 3, D))
        settings = {"normalize": True, "reduction": reduction}
        ours = clip(images, captions, 7.0, **settings, backend=backend)
        truth = self.textbook(images, captions, 7.0, reduction)
        assert_same(ours, truth, (images, captions))

    def test_one_caption_is_clip(self, backend):
        images, texts = doubles((B, D), (B, D))
        ours = clip(images, texts[:, None], 7.0, normalize=True, backend=backend)
        assert_same(ours, clip(images, texts, 7.0, normalize=True), (images, texts))

    def test_none(self):
        images, captions = torch.randn(3, D, requires_grad=True), torch.randn(3, 0, D)
        loss = clip(images, captions, 7.0)
        assert loss == 0
        loss.backward()
        assert (images.grad == 0).all()

    def test_with_what_they_do_not_go(self):
        images, captions = torch.randn(3, D), torch.randn(3, 2, D)
        for more in ({"target": torch.arange(3)}, {"label_smoothing": 0.1}):
            with pytest.raises(ValueError, match="captions"):
                clip(images, captions, 7.0, **more)


class TestTextsOfOtherImages:
    def test_a_larger_set_of_texts(self, backend):
        """A rank's images against all texts."""
        images, texts = doubles((B, D), (3 * B, D))
        target = torch.arange(B) + B
        ours = clip(images, texts, 7.0, target=target, normalize=True, backend=backend)
        truth = textbook.clip(images, texts, 7.0, target=target, normalize=True)
        assert_same(ours, truth, (images, texts))

    def test_ids_of_images_and_texts(self, backend):
        images, texts = doubles((B, D), (2 * B, D))
        ids = torch.arange(B) % 9, torch.arange(2 * B) % 11
        bias = torch.tensor(-3.0, dtype=torch.float64, requires_grad=True)
        ours = siglip(images, texts, 7.0, bias, ids=ids, normalize=True, backend=backend)
        truth = textbook.siglip(images, texts, 7.0, bias, ids=ids, normalize=True)
        assert_same(ours, truth, (images, texts, bias))


class TestViews:
    @staticmethod
    def textbook(x, temperature, keep=None):
        V = x.shape[1]
        z = F.normalize(x, dim=-1).flatten(0, 1)
        logits = z @ z.T / temperature
        image = torch.arange(len(z)) // V
        losses = []
        for i in range(len(z)):
            others = image != image[i]
            others &= True if keep is None else keep[i]
            positives = [j for j in range(len(z)) if image[j] == image[i] and j != i]
            terms = [
                F.cross_entropy(torch.cat([logits[i, j][None], logits[i][others]]), torch.tensor(0))
                for j in positives
            ]
            losses.append(torch.stack(terms).mean())
        return torch.stack(losses)

    @pytest.mark.parametrize("number", [2, 3, 5])
    def test_against_the_textbook(self, backend, number):
        (x,) = doubles((6, number, D))
        truth = self.textbook(x, 0.2)
        ours = nt_xent(x, temperature=0.2, reduction="none", backend=backend)
        assert_same(ours, truth, (x,))
        mean = nt_xent(x, temperature=0.2, backend=backend)
        torch.testing.assert_close(mean, truth.mean())

    def test_two_are_nt_xent(self, backend):
        first, second = doubles((B, D), (B, D))
        ours = nt_xent(torch.stack((first, second), 1), backend=backend)
        assert_same(ours, nt_xent(first, second), (first, second))

    def test_filtered(self, backend):
        (x,) = doubles((6, 3, D))
        labels = torch.arange(18) % 5
        keep = labels[:, None] != labels
        where = PairFilter(labels, labels, "different")
        ours = nt_xent(x, temperature=0.2, where=where, reduction="none", backend=backend)
        assert_same(ours, self.textbook(x, 0.2, keep), (x,))

    def test_one_view_has_no_positive(self):
        x = torch.randn(4, 1, D, requires_grad=True)
        loss = nt_xent(x)
        assert loss == 0
        loss.backward()
        assert (x.grad == 0).all()

    def test_bad(self):
        with pytest.raises(TypeError, match="view_1: expected a tensor, got NoneType"):
            nt_xent(torch.randn(4, D))
        with pytest.raises(ValueError, match=r"view_0: expected .*, got shape \[4, 2, 3\]"):
            nt_xent(torch.randn(4, 2, 3), torch.randn(4, 3))


class TestLists:
    @pytest.mark.parametrize("positives", ["outside", "inside", "pairs"])
    @pytest.mark.parametrize("padded", [several(B), overlapping(B)], ids=["ids", "overlapping"])
    def test_forms(self, backend, positives, padded):
        first, second = views(B, D)
        lists = [[int(k) for k in row if k >= 0] for row in padded]
        settings = {"positives": positives, "reduction": "none", "backend": backend}
        expected = info_nce(first, second, target=padded, **settings)
        for form in (lists, CSR.from_lists(lists), dict(enumerate(lists))):
            assert torch.equal(info_nce(first, second, target=form, **settings), expected)
        assert expected.shape == ((padded >= 0).sum() if positives == "pairs" else B,)

    @pytest.mark.parametrize("positives", ["outside", "inside", "pairs"])
    def test_one_of_each_is_the_plain_loss(self, backend, positives):
        first, second = doubles((B, D), (B, D))
        target = torch.arange(B)[:, None]
        ours = info_nce(first, second, target=target, positives=positives, backend=backend)
        assert_same(ours, info_nce(first, second), (first, second))

    def test_nobody_has_any(self, backend):
        x = unit_rows(4, D).requires_grad_()
        loss = info_nce(x, x, target=torch.full((4, 2), -1), backend=backend)
        assert loss == 0
        loss.backward()
        assert (x.grad == 0).all()

    @pytest.mark.parametrize("positives", ["outside", "inside", "pairs"])
    def test_all_are(self, backend, positives):
        """And so there are no negatives."""
        x = unit_rows(4, D).requires_grad_()
        every = torch.arange(4).expand(4, 4)
        loss = info_nce(x, x, target=every, positives=positives, backend=backend)
        assert loss == 0
        loss.backward()
        assert (x.grad == 0).all()

    def test_of_the_hardest(self, backend):
        """All that are left, the hardest of which are all of them."""
        first, second = doubles((B, D), (B, D))
        target = several(B)
        ours = info_nce(first, second, target=target, hardest=B, backend=backend)
        assert_same(ours, textbook.info_nce(first, second, target=target), (first, second))

    def test_overlapping_lists_in_parts(self, backend, monkeypatch):
        monkeypatch.setattr("cl_kernels.losses.sets._FEW", 5 * B)
        first, second = doubles((B, D), (B, D))
        classes = torch.arange(B) % 3
        where = PairFilter(classes, classes, "different")
        options = {"target": overlapping(B), "where": where}
        ours = info_nce(first, second, **options, backend=backend)
        assert_same(ours, textbook.info_nce(first, second, **options), (first, second))


def test_weights_of_nothing():
    x = unit_rows(4, D).requires_grad_()
    for loss in (
        info_nce(x, x, weights=torch.zeros(4)),
        clip(x, x, 3.0, weights=torch.zeros(4)),
        info_nce(x, x, target=several(4), weights=torch.zeros(4)),
    ):
        assert loss == 0
        (grad,) = torch.autograd.grad(loss, x)
        assert (grad == 0).all()


@pytest.mark.parametrize(
    ("loss", "option"), [(name, o) for name, case in LOSSES.items() for o in case.options]
)
def test_eager_forms_compute_the_same(loss, option):
    """What ours is timed against is the same loss."""
    case = LOSSES[loss]
    options = case.options[option](24, 8)
    first, second = unit_rows(24, 8), unit_rows(24, 8)
    scale = {case.scale: case.argument(3.0)}
    found = case.eager(first, second, **scale, **options)
    truth = case.textbook(first, second, **scale, **options)
    torch.testing.assert_close(found, truth, rtol=1e-5, atol=1e-6)
    assert getattr(eager, case.name) is case.eager


def test_no_negative_in_any_of_two_sets(backend):
    """Of two empty sets the union has no gradient, and no NaN."""
    x, queue = unit_rows(4, D).requires_grad_(), unit_rows(3, D).requires_grad_()
    nobody = PairFilter([0] * 4, [0] * 4, "different")
    of_queue = PairFilter([0] * 4, [0] * 3, "different")
    views_of = PairFilter([0] * 8, [0] * 8, "different")
    views_of_queue = PairFilter([0] * 8, [0] * 3, "different")
    further = {"negative_keys": queue, "backend": backend}
    for loss in (
        info_nce(x, x, where=nobody, negative_where=of_queue, in_batch_negatives=True, **further),
        nt_xent(x, x, where=views_of, negative_where=views_of_queue, **further),
    ):
        assert loss == 0
        for grad in torch.autograd.grad(loss, (x, queue)):
            assert (grad == 0).all()


class TestOverlappingLists:
    def test_a_nan_is_not_hidden(self, backend):
        x = unit_rows(6, D)
        x[3] = torch.nan
        losses = info_nce(x, x, target=overlapping(6), reduction="none", backend=backend)
        assert losses[[1, 2, 4, 5]].isnan().all()

    def test_inside_torch_func(self, backend):
        x, y = unit_rows(B, D), unit_rows(B, D)
        options = {"target": overlapping(B), "backend": backend}
        found = torch.func.grad(lambda q: info_nce(q, y, **options))(x)
        leaf = x.clone().requires_grad_()
        (expected,) = torch.autograd.grad(info_nce(leaf, y, **options), leaf)
        torch.testing.assert_close(found, expected)

    def test_changed_before_backward(self, backend):
        x, ids = unit_rows(B, D).requires_grad_(), torch.arange(B) % 3
        where = PairFilter(ids, ids, "different")
        loss = info_nce(x, x, target=overlapping(B), where=where, backend=backend)
        ids += 1
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()

    def test_a_learned_temperature_under_autocast(self, backend):
        x, y = unit_rows(B, D), unit_rows(B, D)
        temperature = torch.tensor(0.2, requires_grad=True)
        options = {"target": overlapping(B), "temperature": temperature, "backend": backend}
        with torch.autocast("cpu", torch.bfloat16):
            loss = info_nce(x, y, **options)
        exact = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
        truth = textbook.info_nce(x.double(), y.double(), target=overlapping(B), temperature=exact)
        torch.testing.assert_close(loss.double(), truth, rtol=1e-5, atol=0)
        (found,), (expected,) = (
            torch.autograd.grad(a, b) for a, b in ((loss, temperature), (truth, exact))
        )
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=0)


def test_smoothing_of_an_empty_batch():
    x = torch.randn(0, 4, requires_grad=True)
    loss = clip(x, x, 10.0, label_smoothing=0.1)
    assert loss == 0
    loss.backward()
