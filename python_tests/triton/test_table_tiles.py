"""The kernels with the table's own tiles, as on a GPU: one line for each shape of tile that a
family has, and of each family one on sizes that its tiles divide."""

import pytest
import torch

from cl_kernels.backends import reference
from cl_kernels.backends import triton as kernels
from cl_kernels.backends.gpu import rounds
from cl_kernels.backends.triton import configs
from cl_kernels.backends.triton.problem import LARGEST_BLOCK
from python_tests.devices import INTERPRETED

from .cases import assert_gradient, assert_value, filters_of, options_of, random_case, upstream
from .test_topk import check as check_topk
from .test_topk import integers, options, plan_tightly

# On a GPU the other tests have the table's tiles.
pytestmark = pytest.mark.skipif(not INTERPRETED, reason="TRITON_INTERPRET=1 is not set")

OPERATIONS = {
    "row_forward": ("row_logsumexp", "forward"),
    "row_col_forward": ("row_col_logsumexp", "forward"),
    "self_forward": ("self_logsumexp", "forward"),
    "mean_key": ("row_logsumexp", "weighted_key"),
    "backward": ("row_logsumexp", "backward", (True, False)),
    "backward_both": ("row_col_logsumexp", "backward"),
    "self_backward": ("self_logsumexp", "backward"),
    "weights": ("row_col_logsumexp", "backward"),
}


def shape(config):
    return config.BLOCK_M, config.BLOCK_N, config.BLOCK_D > 0


def each_line(families, kind_of=shape):
    """Lines of the table of some families, the first of each kind of configuration."""
    found = {}
    for line, config in configs.TABLE.items():
        family = line[1].removesuffix("_masked")
        if family in families:
            found.setdefault((family, kind_of(config)), line)
    names = ["-".join(map(str, line)) for line in found.values()]
    return pytest.mark.parametrize("line", list(found.values()), ids=names)


@pytest.fixture
def small_tiles():
    """None of them."""
    return False


@pytest.fixture(autouse=True)
def served_by_the_line(monkeypatch, line):
    """Calls are of the line's architecture and precision, and ask for it."""
    arch, _, kind, _ = line
    asked, configured = [], configs.configured

    def noted(*case):
        asked.append(configured(*case))
        return asked[-1]

    monkeypatch.setattr(configs, "configured", noted)
    monkeypatch.setattr(configs, "architecture", lambda device: arch)
    monkeypatch.setattr(configs, "kind", lambda dtype: kind)
    yield
    assert configs.TABLE[line] in asked


def embeddings_of(line):
    """A width that the line serves, not a whole tile and not a narrower line's, and a dtype."""
    _, family, kind, width = line
    least = max((w for *case, w in configs.TABLE if case == [*line[:3]] and w < width), default=0)
    if family.startswith("weights"):
        least = configs.KNEE[kind]
    return least + 9, torch.bfloat16 if kind == "half" else torch.float32


def results(line, case, grads, fold):
    """Of the kernels, and in float64."""
    name, kind, *needs = OPERATIONS[line[1].removesuffix("_masked")]
    name = name.replace("logsumexp", fold)
    exact = case.exact
    if kind == "weighted_key":
        return case.weighted_key(kernels), exact.weighted_key(reference)
    values = exact.forward(reference, name)
    if kind == "forward":
        return case.forward(kernels, name), values
    grads = grads[: len(values)]
    return (
        case.backward(kernels, name, grads, [x.float() for x in values], *needs),
        exact.backward(reference, name, [g.double() for g in grads], values, *needs),
    )


def results_are_gradients(line):
    return OPERATIONS[line[1].removesuffix("_masked")][1] == "backward"


def check(line, M, N, filters, fold="logsumexp", options=None):
    D, dtype = embeddings_of(line)
    N = M if line[1].startswith("self") else N
    options = {} if options is None else options_of(options, M, N)
    case = random_case(M, N, D, dtype, filters=filters_of(filters, M, N), **options)
    if line[1].removesuffix("_masked") == "backward":
        case.key_bias = None  # which would have the keys visited too
    grads, of_gradients = upstream(M, N), results_are_gradients(line)
    for ours, theirs in zip(*results(line, case, grads, fold), strict=True):
        if theirs.dim() == 2 or (theirs.dim() == 1 and of_gradients):
            assert_gradient(ours, theirs, dtype, case.scale)
        elif theirs.dim() == 1:
            assert_value(ours, theirs, case.scale)
        else:  # the scale's gradient, a small difference of large terms
            assert (ours - theirs).abs() <= 4e-3 * (theirs.abs() + sum(g.norm() for g in grads))


@each_line(OPERATIONS)
def test_masked_tiles(line):
    arch, family, kind, _ = line
    if configs.family_for(arch, family, kind, masked=True) == family:
        check(line, 150, 200, "two")
    else:  # another line serves those
        check(line, LARGEST_BLOCK, LARGEST_BLOCK, "none")


@each_line(OPERATIONS, kind_of=lambda config: config.BLOCK_D > 0)
def test_whole_tiles_without_filters(line):
    check(line, LARGEST_BLOCK, LARGEST_BLOCK, "none")


@each_line(OPERATIONS, kind_of=lambda config: config.BLOCK_D > 0)
def test_options(line):
    """With narrower tiles than the table's."""
    arch, family, kind, _ = line
    if configs.family_for(arch, family, kind, masked=True) == family:
        fold = "logsumexp" if family == "mean_key" else "softplus_sum"
        guides = family.endswith("forward") or family == "weights"
        check(line, 150, 200, "different", fold, "biases+bounds" + "+guide" * guides)
    else:
        check(line, LARGEST_BLOCK, LARGEST_BLOCK, "none")


@pytest.mark.filterwarnings("ignore:All-NaN")  # of the interpreter's maximum
class TestTopK:
    @each_line(["topk"])
    def test_bounded(self, monkeypatch, line):
        monkeypatch.setattr(rounds, "FEW_KEYS", 0)
        M, N = configs.TABLE[line].BLOCK_M - 9, 5 * configs.TABLE[line].BLOCK_N + 9
        check_topk(*searched(line, M, N), 5, options(M, N))

    @each_line(["topk"], kind_of=lambda config: config.BLOCK_N)
    def test_all_pairs_stored(self, monkeypatch, line):
        monkeypatch.setattr(rounds, "STORED_KEYS", 16)
        M, N = configs.TABLE[line].BLOCK_M, 4 * configs.TABLE[line].BLOCK_N
        check_topk(*searched(line, M, N), 5, options(M, N, everything=False))

    @each_line(["topk"], kind_of=lambda config: None)
    def test_full_buffers(self, monkeypatch, line):
        M, N = 20, 4 * plan_tightly(monkeypatch)
        query, key = searched(line, M, N)
        query[:, 0], key[:, 0] = 4.0, torch.arange(N) // 2
        check_topk(query, key, 3, options(M, N, everything=False))


def searched(line, M, N):
    D, dtype = embeddings_of(line)
    return integers(M, D, dtype=dtype), integers(N, D, dtype=dtype)
