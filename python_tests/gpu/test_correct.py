"""How the GPU check judges kernels: the compiled CPU library passes, planted faults do not."""

import pytest
import torch

pytest.importorskip("triton.language", reason="Triton is not installed")

from benchmarks.gpu import checks, correct
from benchmarks.gpu.checks import Check


@pytest.fixture
def on_the_cpu(monkeypatch):
    for module in (checks, correct):
        monkeypatch.setattr(module, "device", lambda large=False: "cpu")
    monkeypatch.setattr(correct, "rehearsed", lambda: False)


# The same checks as on a GPU, of the compiled library on the CPU.
@pytest.mark.parametrize("name", [*checks.STATISTICS, *checks.LOSSES, *checks.SEARCHES])
@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
def test_what_is_right_passes_the_check(on_the_cpu, monkeypatch, name, precision):
    for filtered in (False, True):
        check = Check(name, precision, 40, filtered, ragged=filtered, backend="native")
        monkeypatch.setattr(Check, "sizes", property(lambda self: (90, 130)))
        monkeypatch.setitem(correct.CHECKS, str(check), check)
        found = correct.work(str(check))
        assert found["ok"], (str(check), found)
        assert all(error >= 0 for error in found["errors"].values())


@pytest.mark.parametrize("options", [*((name,) for name in checks.OPTIONS), checks.OPTIONS])
@pytest.mark.parametrize("name", [*checks.SIDES, "row softplus", "row_col hinge", "self hinge"])
def test_what_is_right_passes_the_check_with_options(on_the_cpu, monkeypatch, name, options):
    monkeypatch.setattr(Check, "sizes", property(lambda self: (90, 130)))
    for precision in ("bfloat16", "float32"):
        check = Check(name, precision, 40, options=options, backend="native")
        monkeypatch.setitem(correct.CHECKS, str(check), check)
        found = correct.work(str(check))
        assert found["ok"], (str(check), found)
        assert ("grad query_bias" in found["errors"]) == ("biases" in options)
        assert ("row count" in found["errors"]) == ("hinge" in name)


@pytest.mark.parametrize("ignored", ["below", "above", "query_bias", "key_bias", "guide"])
@pytest.mark.parametrize("name", ["row", "row_col hinge", "self softplus"])
def test_an_option_that_is_ignored_fails_the_check(on_the_cpu, monkeypatch, name, ignored):
    statistic = checks.OPERATIONS[name]

    def wrong(query, key, scale, **options):
        if options["backend"] != "reference":
            del options[ignored]
        return statistic(query, key, scale, **options)

    monkeypatch.setattr(Check, "sizes", property(lambda self: (60, 70)))
    monkeypatch.setitem(checks.OPERATIONS, name, wrong)
    check = Check(name, "bfloat16", 24, options=checks.OPTIONS, backend="native")
    monkeypatch.setitem(correct.CHECKS, str(check), check)
    assert not correct.work(str(check))["ok"]


@pytest.mark.parametrize("bias", ["query_bias", "key_bias"])
def test_one_gradient_of_a_bias_that_is_wrong_fails_the_check(on_the_cpu, monkeypatch, bias):
    row = checks.OPERATIONS["row"]

    def wrong(query, key, scale, **options):
        if options["backend"] != "reference":
            options[bias].register_hook(lambda g: torch.cat([g[:-1], 0 * g[-1:]]))
        return row(query, key, scale, **options)

    monkeypatch.setitem(checks.OPERATIONS, "row", wrong)
    check = Check("row", "bfloat16", 64, options=("biases",), backend="native")
    monkeypatch.setitem(correct.CHECKS, str(check), check)
    found = correct.work(str(check))
    assert not found["ok"] and found["worst"] == f"grad {bias}"


def test_one_count_or_place_that_is_wrong_fails_the_check(on_the_cpu, monkeypatch):
    def wrong(query, key, scale, **options):
        total, count = hinge(query, key, scale, **options)
        return total, count + (options["backend"] != "reference") * (torch.arange(len(count)) == 3)

    hinge = checks.OPERATIONS["row hinge"]
    monkeypatch.setattr(Check, "sizes", property(lambda self: (60, 70)))
    monkeypatch.setitem(checks.OPERATIONS, "row hinge", wrong)
    check = Check("row hinge", "float32", 24, backend="native")
    monkeypatch.setitem(correct.CHECKS, str(check), check)
    found = correct.work(str(check))
    assert not found["ok"] and found["worst"] == "row count"
    assert correct.places_that_differ(torch.tensor([1, 2]), torch.tensor([1, 3])) > 1


def test_comparisons_of_exact_rows_are_far_from_rounding(on_the_cpu):
    """So that no rounding decides whether a pair counts, in any precision."""
    for check in checks.CHECKS.values():
        if not check.exact or not check.width <= 64:
            continue
        given, inputs = checks.options(check), checks.trained(check)
        query, key = (inputs[name].double() for name in ("query", "key"))
        similarity = (key if check.name.startswith("self") else query) @ key.T
        assert torch.equal((similarity * check.steps).round() / check.steps, similarity)
        for name in given.keys() & {"below", "above"}:
            assert (similarity - given[name].double()[:, None]).abs().min() > 1e-3
        if "guide" in given:
            first, second, ceiling = given["guide"]
            assert ((first @ second.T) - ceiling[:, None]).abs().min() > 1e-3


@pytest.mark.parametrize("fault", ["value", "gradient", "nan", "nan scale"])
def test_what_is_wrong_fails_the_check(on_the_cpu, monkeypatch, fault):
    monkeypatch.setattr(Check, "sizes", property(lambda self: (60, 70)))
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    row = checks.OPERATIONS["row"]

    def wrong(query, key, scale, **options):
        (lse,) = row(query, key, scale, **options)
        if options["backend"] == "reference":
            return (lse,)
        if fault == "value":
            return (lse * (1 + 3e-5),)
        if fault == "nan scale":
            return (lse + (scale - scale.detach()) * torch.nan,)
        if fault == "nan":
            return (torch.where(torch.arange(len(lse)) == 5, torch.nan, lse),)
        return (lse + 0.05 * (query[:, 0] - query[:, 0].detach()).float(),)

    monkeypatch.setitem(checks.OPERATIONS, "row", wrong)
    check = Check("row", "float32", 24, backend="native")
    monkeypatch.setitem(correct.CHECKS, str(check), check)
    found = correct.work(str(check))
    assert not found["ok"] and found["times_allowed"] > 1
    if "nan" not in fault:
        assert found["worst"] == {"value": "row", "gradient": "grad query"}[fault]


@pytest.mark.parametrize("fault", ["last row of the query", "last row of the key", "scale"])
def test_a_small_part_that_is_wrong_fails_the_check_in_bfloat16(on_the_cpu, monkeypatch, fault):
    """One row's gradient, or the scale's, is zero."""
    row = checks.OPERATIONS["row"]

    def wrong(query, key, scale, **options):
        if options["backend"] != "reference" and fault == "scale":
            scale = scale.detach()
        elif options["backend"] != "reference":
            cut = query if "query" in fault else key
            cut.register_hook(lambda g: torch.cat([g[:-1], torch.zeros_like(g[-1:])]))
        (lse,) = row(query, key, scale, **options)
        return (lse + 0 * scale.detach(),)

    def zeros(values, leaves, upstream, allow_unused):
        found = grad(values, leaves, upstream, allow_unused=True)
        return [torch.zeros_like(x) if g is None else g for g, x in zip(found, leaves, strict=True)]

    grad = torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", zeros)
    monkeypatch.setitem(checks.OPERATIONS, "row", wrong)
    check = Check("row", "bfloat16", 64, backend="native")
    monkeypatch.setitem(correct.CHECKS, str(check), check)
    found = correct.work(str(check))
    worst = {"scale": "grad scale", "last row of the query": "grad query"}.get(fault, "grad key")
    assert not found["ok"] and found["worst"] == worst, found


@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
def test_a_gram_matrix_of_its_diagonal_alone_fails_the_check(on_the_cpu, monkeypatch, precision):
    gram = checks.OPERATIONS["self"]

    def wrong(query, key, scale, **options):
        if options["backend"] == "reference":
            return gram(query, key, scale, **options)
        return (scale * key.float().square().sum(1),)

    monkeypatch.setitem(checks.OPERATIONS, "self", wrong)
    for ragged in (False, True):
        check = Check("self", precision, 64, ragged=ragged, backend="native")
        monkeypatch.setitem(correct.CHECKS, str(check), check)
        assert not correct.work(str(check))["ok"]


@pytest.mark.parametrize("name", checks.LOSSES)
@pytest.mark.parametrize("rows", [slice(0, 64), slice(-64, None)], ids=["first", "last"])
def test_a_loss_without_a_tiles_gradient_fails_the_check(on_the_cpu, monkeypatch, name, rows):
    loss = checks.OPERATIONS[name]

    def cut(gradient):
        gradient = gradient.clone()
        gradient[rows] = 0
        return gradient

    def wrong(query, key, scale, **options):
        if options["backend"] != "reference":
            query.register_hook(cut)
        return loss(query, key, scale, **options)

    monkeypatch.setitem(checks.OPERATIONS, name, wrong)
    check = Check(name, "bfloat16", 128, backend="native")
    monkeypatch.setitem(correct.CHECKS, str(check), check)
    found = correct.work(str(check))
    assert not found["ok"] and found["worst"] == "grad query"


@pytest.mark.parametrize("missing", ["grad query", "grad key", "grad scale"])
def test_a_missing_gradient_fails_the_check(on_the_cpu, monkeypatch, missing):
    row = checks.OPERATIONS["row"]

    def wrong(query, key, scale, **options):
        leaves = {"grad query": query, "grad key": key, "grad scale": scale}
        if options["backend"] != "reference":
            leaves[missing] = leaves[missing].detach()
        return row(*leaves.values(), **options)

    monkeypatch.setitem(checks.OPERATIONS, "row", wrong)
    check = Check("row", "float32", 24, backend="native")
    monkeypatch.setitem(correct.CHECKS, str(check), check)
    found = correct.work(str(check))
    assert not found["ok"] and found["worst"] == missing


def test_checks_have_names_of_their_own_and_reach_every_family():
    assert len(checks.CHECKS) == len(checks.ALL)
    assert {check.name for check in correct.CHECKS.values()} == {
        *checks.OPERATIONS,
        *checks.SEARCHES,
    }
    assert {check.precision for check in correct.CHECKS.values()} == set(correct.GRADIENT)
    served = {(c.name, option) for c in correct.CHECKS.values() for option in c.options}
    assert served >= {(name, option) for name in checks.SIDES for option in checks.OPTIONS}
    of_sums = {(c.name, c.precision) for c in checks.of_sums()}
    assert of_sums == {(s, p) for s in checks.SUMS for p in set(correct.GRADIENT) - {"tf32"}}
