"""Targets, weights, smoothing and ids: bad ones are told by their names."""

import pytest
import torch

from cl_kernels import PairFilter
from python_tests.test_errors import clip, info_nce, nt_xent, refused, siglip

each_weighted = pytest.mark.parametrize("call", [info_nce, clip], ids=["info_nce", "clip"])


def different(rows):
    return PairFilter(torch.arange(rows), torch.arange(4), "different")


class TestTarget:
    def test_type_and_dtype(self):
        with pytest.raises(TypeError, match="target: lists: expected lists of integers"):
            info_nce(target=[0, 1, 2, 3])
        refused(TypeError, info_nce, "target", torch.zeros(4), "int64", torch.float32)
        refused(TypeError, info_nce, "target", torch.zeros(4).bool(), "int64", torch.bool)

    def test_shape_and_device(self):
        refused(ValueError, info_nce, "target", torch.arange(3), "each of the 4 queries", [3])
        refused(ValueError, info_nce, "target", torch.zeros(3, 1).long(), "each of", [3, 1])
        refused(
            ValueError, info_nce, "target", torch.zeros(4, 1, 1).long(), "1-D or 2-D", [4, 1, 1]
        )
        refused(ValueError, info_nce, "target", torch.zeros(4).long().to("meta"), "cpu", "meta")

    @pytest.mark.parametrize("bad", [-1, 4, 2**40])
    def test_range(self, bad):
        refused(ValueError, info_nce, "target", torch.tensor([0, 1, 2, bad]), r"\[0, 4\)", bad)
        if bad >= 0:
            several = torch.tensor([[0, 1], [2, -1], [3, bad], [-1, -1]])
            refused(ValueError, info_nce, "target", several, r"\[0, 4\)", bad)

    def test_how_several_are_combined(self):
        refused(ValueError, info_nce, "positives", "both", '"outside", "inside" or "pairs"', "both")

    def test_what_does_not_go_together(self):
        several = torch.tensor([[0, 1], [2, -1], [3, 0], [-1, -1]])
        for more in ({"target": several}, {"where": different(4)}, {"hardest": 2}):
            with pytest.raises(ValueError, match="label_smoothing: expected 0 with"):
                info_nce(label_smoothing=0.1, **more)
        with pytest.raises(ValueError, match="hardest: expected None with positives that queries"):
            info_nce(target=several, hardest=2)
        with pytest.raises(ValueError, match="hardest: expected None with key_bias"):
            info_nce(key_bias=torch.zeros(4), hardest=2)

    def test_filters_of_nothing(self):
        with pytest.raises(ValueError, match="negative_where: expected no filter without shared"):
            info_nce(negative_where=different(4))
        with pytest.raises(ValueError, match="negative_where: expected no filter beside where"):
            queue = {"negative_keys": torch.randn(4, 3)}
            info_nce(where=different(4), negative_where=different(4), **queue)
        for loss in (info_nce, nt_xent):
            with pytest.raises(TypeError, match="negative_where: expected a PairFilter or a seq"):
                loss(negative_where=3, negative_keys=torch.randn(4, 3))
        with pytest.raises(ValueError, match="negative_where: expected no filter without negative"):
            nt_xent(negative_where=different(8))


class TestWeightsAndSmoothing:
    @each_weighted
    def test_weights(self, call):
        refused(TypeError, call, "weights", torch.ones(4).long(), "floating", torch.int64)
        refused(TypeError, call, "weights", [1.0] * 4, "floating", "list")
        refused(ValueError, call, "weights", torch.ones(3), "each of the 4", [3])
        refused(ValueError, call, "weights", torch.ones(4, device="meta"), "device", "meta")
        for bad in (-1.0, float("nan"), float("inf")):
            refused(ValueError, call, "weights", torch.tensor([1, 1, 1, bad]), "finite", "others")

    @each_weighted
    @pytest.mark.parametrize("smoothing", [-0.1, 1.0, float("nan")])
    def test_smoothing(self, call, smoothing):
        refused(ValueError, call, "label_smoothing", smoothing, "0 <= number < 1", smoothing)

    def test_key_bias(self):
        refused(ValueError, info_nce, "key_bias", torch.zeros(3), "each of the 4 rows", [3])
        refused(ValueError, info_nce, "key_bias", torch.full((4,), torch.nan), "finite", "others")

    def test_ids(self):
        refused(ValueError, siglip, "ids", torch.arange(3), "each of the 4 rows", [3])
        refused(TypeError, siglip, "ids", torch.zeros(4), "integer", torch.float32)
        refused(
            ValueError, siglip, "ids", (torch.arange(4),), "of images and of texts", "1 of them"
        )
