"""How the GPU check judges kernels: the compiled CPU library passes, planted faults do not."""

import pytest
import torch

pytest.importorskip("triton.language", reason="Triton is not installed")

from benchmarks.gpu import correct
from benchmarks.gpu.correct import Check


@pytest.fixture
def on_the_cpu(monkeypatch):
    monkeypatch.setattr(correct, "device", lambda large=False: "cpu")
    monkeypatch.setattr(correct, "rehearsed", lambda: False)


# The same checks as on a GPU, of the compiled library on the CPU.
@pytest.mark.parametrize("name", [*correct.STATISTICS, *correct.LOSSES, *correct.SEARCHES])
@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
def test_what_is_right_passes_the_check(on_the_cpu, monkeypatch, name, precision):
    for filtered in (False, True):
        check = Check(name, precision, 40, filtered, ragged=filtered, backend="native")
        monkeypatch.setattr(Check, "sizes", property(lambda self: (90, 130)))
        monkeypatch.setitem(correct.CHECKS, str(check), check)
        found = correct.work(str(check))
        assert found["ok"], (str(check), found)
        assert all(error >= 0 for error in found["errors"].values())


@pytest.mark.parametrize("fault", ["value", "gradient", "nan", "nan scale"])
def test_what_is_wrong_fails_the_check(on_the_cpu, monkeypatch, fault):
    monkeypatch.setattr(Check, "sizes", property(lambda self: (60, 70)))
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    row = correct.OPERATIONS["row"]

    def wrong(check, query, key, scale, **options):
        (lse,) = row(check, query, key, scale, **options)
        if options["backend"] == "reference":
            return (lse,)
        if fault == "value":
            return (lse * (1 + 3e-5),)
        if fault == "nan scale":
            return (lse + (scale - scale.detach()) * torch.nan,)
        if fault == "nan":
            return (torch.where(torch.arange(len(lse)) == 5, torch.nan, lse),)
        return (lse + 0.05 * (query[:, 0] - query[:, 0].detach()).float(),)

    monkeypatch.setitem(correct.OPERATIONS, "row", wrong)
    check = Check("row", "float32", 24, backend="native")
    monkeypatch.setitem(correct.CHECKS, str(check), check)
    found = correct.work(str(check))
    assert not found["ok"] and found["times_allowed"] > 1
    if "nan" not in fault:
        assert found["worst"] == {"value": "row", "gradient": "grad query"}[fault]


@pytest.mark.parametrize("fault", ["last row of the query", "last row of the key", "scale"])
def test_a_small_part_that_is_wrong_fails_the_check_in_bfloat16(on_the_cpu, monkeypatch, fault):
    """One row's gradient, or the scale's, is zero."""
    row = correct.OPERATIONS["row"]

    def wrong(check, query, key, scale, **options):
        if options["backend"] != "reference" and fault == "scale":
            scale = scale.detach()
        elif options["backend"] != "reference":
            cut = query if "query" in fault else key
            cut.register_hook(lambda g: torch.cat([g[:-1], torch.zeros_like(g[-1:])]))
        (lse,) = row(check, query, key, scale, **options)
        return (lse + 0 * scale.detach(),)

    def zeros(values, leaves, upstream, allow_unused):
        found = grad(values, leaves, upstream, allow_unused=True)
        return [torch.zeros_like(x) if g is None else g for g, x in zip(found, leaves, strict=True)]

    grad = torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", zeros)
    monkeypatch.setitem(correct.OPERATIONS, "row", wrong)
    check = Check("row", "bfloat16", 64, backend="native")
    monkeypatch.setitem(correct.CHECKS, str(check), check)
    found = correct.work(str(check))
    worst = {"scale": "grad scale", "last row of the query": "grad query"}.get(fault, "grad key")
    assert not found["ok"] and found["worst"] == worst, found


@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
def test_a_gram_matrix_of_its_diagonal_alone_fails_the_check(on_the_cpu, monkeypatch, precision):
    def wrong(check, query, key, scale, **options):
        if options["backend"] == "reference":
            return correct.gram(check, query, key, scale, **options)
        return (scale * key.float().square().sum(1),)

    monkeypatch.setitem(correct.OPERATIONS, "self", wrong)
    for ragged in (False, True):
        check = Check("self", precision, 64, ragged=ragged, backend="native")
        monkeypatch.setitem(correct.CHECKS, str(check), check)
        assert not correct.work(str(check))["ok"]


@pytest.mark.parametrize("name", correct.LOSSES)
@pytest.mark.parametrize("rows", [slice(0, 64), slice(-64, None)], ids=["first", "last"])
def test_a_loss_without_a_tiles_gradient_fails_the_check(on_the_cpu, monkeypatch, name, rows):
    loss = correct.OPERATIONS[name]

    def cut(gradient):
        gradient = gradient.clone()
        gradient[rows] = 0
        return gradient

    def wrong(check, query, key, scale, **options):
        if options["backend"] != "reference":
            query.register_hook(cut)
        return loss(check, query, key, scale, **options)

    monkeypatch.setitem(correct.OPERATIONS, name, wrong)
    check = Check(name, "bfloat16", 128, backend="native")
    monkeypatch.setitem(correct.CHECKS, str(check), check)
    found = correct.work(str(check))
    assert not found["ok"] and found["worst"] == "grad query"


@pytest.mark.parametrize("missing", ["grad query", "grad key", "grad scale"])
def test_a_missing_gradient_fails_the_check(on_the_cpu, monkeypatch, missing):
    row = correct.OPERATIONS["row"]

    def wrong(check, query, key, scale, **options):
        leaves = {"grad query": query, "grad key": key, "grad scale": scale}
        if options["backend"] != "reference":
            leaves[missing] = leaves[missing].detach()
        return row(check, *leaves.values(), **options)

    monkeypatch.setitem(correct.OPERATIONS, "row", wrong)
    check = Check("row", "float32", 24, backend="native")
    monkeypatch.setitem(correct.CHECKS, str(check), check)
    found = correct.work(str(check))
    assert not found["ok"] and found["worst"] == missing


def test_checks_have_names_of_their_own_and_reach_every_family():
    assert len(correct.CHECKS) == len(list(correct._checks()))
    assert {check.name for check in correct.CHECKS.values()} == {
        *correct.OPERATIONS,
        *correct.SEARCHES,
    }
    assert {check.precision for check in correct.CHECKS.values()} == set(correct.GRADIENT)
