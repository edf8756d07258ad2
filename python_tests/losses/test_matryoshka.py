"""Any loss at several widths."""

import pytest
import torch
from torch import is_tensor, nn

import cl_kernels

B, D = 12, 8


class TestMatryoshka:
    dims, weights = (8, 2, 5), (1.0, 0.25, 2.0)

    def test_is_the_sum_over_prefixes(self):
        x, y, labels = *torch.randn(2, B, D), torch.arange(B) % 3
        cases = [
            (cl_kernels.nt_xent, (x, y), {"temperature": 0.2}),
            (cl_kernels.supcon, (x, labels), {}),
            (cl_kernels.info_nce, (x,), {"positive_key": y, "negative_keys": torch.randn(B, 3, D)}),
            (lambda a, b: (a - b).square().sum(), (x, y), {}),
        ]
        for loss, inputs, options in cases:
            expected = sum(
                weight
                * loss(
                    *(z[:, :d] if z.is_floating_point() else z for z in inputs),
                    **{k: z[..., :d] if is_tensor(z) else z for k, z in options.items()},
                )
                for d, weight in zip(self.dims, self.weights, strict=True)
            )
            settings = {"dims": self.dims, "weights": self.weights}
            assert torch.equal(
                cl_kernels.matryoshka(loss, *inputs, **settings, **options), expected
            )
            module = cl_kernels.MatryoshkaLoss(loss, **settings)
            assert torch.equal(module(*inputs, **options), expected)

    def test_what_is_cut(self):
        """Matrices of the full width; not vectors, other widths, integers, or numbers."""
        seen = []

        def loss(*inputs, **options):
            seen.append([x.shape[-1] for x in (*inputs, *options.values()) if is_tensor(x)])
            return inputs[0].sum() * options["scale"]

        x = torch.randn(B, D)
        passed = torch.randn(D), torch.randn(B, 5), torch.ones(B, D, dtype=torch.int64)
        cl_kernels.matryoshka(loss, x, *passed, dims=[3], scale=2.0, more=torch.randn(2, 4, D))
        assert seen == [[3, D, 5, D, 3]]

    def test_only_prefixes_are_trained(self):
        x = torch.randn(B, D, requires_grad=True)
        cl_kernels.MatryoshkaLoss(cl_kernels.nt_xent, dims=(2, 5))(x, torch.randn(B, D)).backward()
        assert x.grad[:, :5].all() and not x.grad[:, 5:].any()

    def test_a_module_is_part_of_it(self):
        inner = cl_kernels.NTXentLoss(nn.Parameter(torch.tensor(0.5)))
        module = cl_kernels.MatryoshkaLoss(inner, self.dims)
        assert list(module.state_dict()) == ["loss.temperature"]
        assert "NTXentLoss" in repr(module) and "dims=(8, 2, 5)" in repr(module)
        assert "loss=nt_xent" in repr(cl_kernels.MatryoshkaLoss(cl_kernels.nt_xent, [4]))
        module(*torch.randn(2, B, D)).backward()
        assert inner.temperature.grad != 0

    def test_rows_losses(self):
        x, y = torch.randn(2, B, D)
        losses = cl_kernels.matryoshka(cl_kernels.info_nce, x, y, dims=(D,), reduction="none")
        assert torch.equal(losses, cl_kernels.info_nce(x, y, reduction="none"))

    def test_bad_inputs(self):
        x, loss = torch.randn(B, D), cl_kernels.nt_xent
        for make in (
            lambda loss, **settings: cl_kernels.matryoshka(loss, x, x, **settings),
            cl_kernels.MatryoshkaLoss,
        ):
            with pytest.raises(TypeError, match="loss: expected a function or a module, got int"):
                make(3, dims=(4,))
            with pytest.raises(ValueError, match="dims: expected at least one width, got none"):
                make(loss, dims=())
            with pytest.raises(ValueError, match="dims: expected at least 1, got 0"):
                make(loss, dims=(4, 0))
            with pytest.raises(TypeError, match="dims: expected an integer, got float"):
                make(loss, dims=(4.0,))
            with pytest.raises(TypeError, match=r"dims: expected a list or a tuple .*, got int"):
                make(loss, dims=4)
            with pytest.raises(ValueError, match=r"dims: expected different .*, got \[4, 4\]"):
                make(loss, dims=(4, 4))
            with pytest.raises(ValueError, match=r"weights: .* each of the 2 dims, got 1"):
                make(loss, dims=(4, 2), weights=(1,))
            with pytest.raises(ValueError, match=r"weights: expected finite .* 0, got -1"):
                make(loss, dims=(4, 2), weights=(1, -1))
            with pytest.raises(TypeError, match="weights: expected a number, got str"):
                make(loss, dims=(4,), weights=("much",))
        with pytest.raises(ValueError, match="dims: expected widths of at most 8, got 9"):
            cl_kernels.matryoshka(loss, x, x, dims=(9,))
        with pytest.raises(ValueError, match="embeddings: expected a floating-point tensor"):
            cl_kernels.matryoshka(loss, torch.arange(3), dims=(1,))
        with pytest.raises(TypeError, match="dims: expected when the module is made"):
            cl_kernels.MatryoshkaLoss(loss, (4,))(x, x, dims=(2,))


def test_embeddings_in_lists_are_cut_too():
    anchors, positives, hard = (torch.randn(6, 8) for _ in range(3))
    ours = cl_kernels.matryoshka(
        cl_kernels.multiple_negatives_ranking, anchors, [positives, hard], dims=(8, 4)
    )
    parts = [
        cl_kernels.multiple_negatives_ranking(anchors[:, :d], (positives[:, :d], hard[:, :d]))
        for d in (8, 4)
    ]
    torch.testing.assert_close(ours, sum(parts))
