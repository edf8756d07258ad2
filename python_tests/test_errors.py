"""A bad argument raises TypeError or ValueError naming itself, what was expected and what came."""

import re

import pytest
import torch

import cl_kernels
from cl_kernels import ClipLoss, InfoNCELoss, NTXentLoss, PairFilter
from python_tests.helpers import unit_rows

X, Y = torch.randn(4, 3), torch.randn(5, 3)
A, B = torch.randn(4, 3), torch.randn(4, 3)
IDS = torch.arange(4)


def row(**changes):
    return cl_kernels.row_logsumexp(**{"query": X, "key": Y} | changes)


def row_col(**changes):
    return cl_kernels.row_col_logsumexp(**{"query": X, "key": Y} | changes)


def gram(**changes):
    return cl_kernels.self_logsumexp(**{"x": X} | changes)


def nt_xent(**changes):
    return cl_kernels.nt_xent(**{"view_0": A, "view_1": B} | changes)


def info_nce(**changes):
    return cl_kernels.info_nce(**{"query": A, "positive_key": B} | changes)


def clip(**changes):
    return cl_kernels.clip(
        **{"image_features": A, "text_features": B, "logit_scale": 2.0} | changes
    )


def siglip(**changes):
    return cl_kernels.siglip(
        **{"image_features": A, "text_features": B, "logit_scale": 2.0} | changes
    )


EMBEDDINGS = [  # call, argument, the one it is compared with
    (row, "query", None),
    (row, "key", "query"),
    (row_col, "query", None),
    (row_col, "key", "query"),
    (gram, "x", None),
    (nt_xent, "view_0", None),
    (nt_xent, "view_1", "view_0"),
    (nt_xent, "negative_keys", "view_0"),
    (info_nce, "query", None),
    (info_nce, "positive_key", "query"),
    (info_nce, "negative_keys", "query"),
    (clip, "image_features", None),
    (clip, "text_features", "image_features"),
]
PAIRED = [case for case in EMBEDDINGS if case[2]]
TEMPERATURES = [(nt_xent, "temperature"), (info_nce, "temperature")]
SCALES = [(row, "scale"), (row_col, "scale"), (gram, "scale"), (clip, "logit_scale")]
SCALARS = SCALES + TEMPERATURES


def named(cases):
    return [f"{case[0].__name__}-{case[1]}" for case in cases]


def refused(error, call, name, value, expected, got):
    """The message begins with the argument's name, then says what was expected and what came."""
    pattern = rf"{name}: expected .*{expected}.*, got .*{re.escape(str(got))}"
    with pytest.raises(error, match=pattern) as raised:
        call(**{name: value})
    assert raised.type is error
    assert str(raised.value).startswith(name)


each_embedding = pytest.mark.parametrize(
    ("call", "name", "other"), EMBEDDINGS, ids=named(EMBEDDINGS)
)
each_paired = pytest.mark.parametrize(("call", "name", "other"), PAIRED, ids=named(PAIRED))


@each_embedding
@pytest.mark.parametrize("shape", [(4,), (), (2, 4, 3, 3), (4, 0)], ids=str)
def test_rank(call, name, other, shape):
    refused(ValueError, call, name, torch.zeros(shape), "shape", list(shape))


@each_embedding
def test_a_third_dimension(call, name, other):
    if (call, name) == (info_nce, "negative_keys"):
        with pytest.raises(ValueError, match=r"negative_keys: .* B = 4, got .*\[2, 4, 3\]"):
            call(negative_keys=torch.zeros(2, 4, 3))
    elif (call, name) == (clip, "text_features"):
        with pytest.raises(ValueError, match=r"text_features: .* of 4 images, got .*\[2, 4, 3\]"):
            call(text_features=torch.zeros(2, 4, 3))
    else:
        refused(ValueError, call, name, torch.zeros(2, 4, 3), "shape", [2, 4, 3])


@each_embedding
@pytest.mark.parametrize(
    "dtype", [torch.int64, torch.uint8, torch.bool, torch.complex64, torch.float8_e4m3fn], ids=str
)
def test_dtype(call, name, other, dtype):
    refused(TypeError, call, name, torch.zeros(4, 3).to(dtype), "torch.float32", dtype)


@each_embedding
@pytest.mark.parametrize("value", [[[1.0, 2.0]], "x", 3.0], ids=repr)
def test_type(call, name, other, value):
    refused(TypeError, call, name, value, "a tensor", type(value).__name__)


@each_embedding
def test_none(call, name, other):
    if name == "negative_keys":
        assert call(negative_keys=None).isfinite()
    else:
        refused(TypeError, call, name, None, "a tensor", "NoneType")


@each_paired
def test_width(call, name, other):
    refused(ValueError, call, name, torch.zeros(4, 2), f"width of {other}, 3", 2)


@each_paired
def test_mixed_dtypes(call, name, other):
    half = torch.zeros(4, 3).half()
    refused(TypeError, call, name, half, f"dtype of {other}, torch.float32", half.dtype)


@each_paired
def test_devices(call, name, other):
    meta = torch.zeros(4, 3, device="meta")
    refused(ValueError, call, name, meta, f"device of {other}, cpu", "meta")


@pytest.mark.parametrize(
    ("call", "name", "other"),
    [(nt_xent, "view_1", "view_0"), (info_nce, "positive_key", "query"),
     (clip, "text_features", "image_features")],
)  # fmt: skip
def test_rows(call, name, other):
    refused(ValueError, call, name, torch.zeros(7, 3), f"rows as {other}, 4", 7)


@pytest.mark.parametrize(
    ("call", "name"), SCALARS + TEMPERATURES, ids=named(SCALARS + TEMPERATURES)
)
class TestScalars:
    @pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
    def test_not_finite(self, call, name, number):
        refused(ValueError, call, name, number, "finite number", number)
        refused(ValueError, call, name, torch.tensor(number), "finite number", number)

    @pytest.mark.parametrize("value", ["0.1", None, [1.0], 1j, True], ids=repr)
    def test_type(self, call, name, value):
        refused(TypeError, call, name, value, "a number or a 0-d tensor", type(value).__name__)

    @pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64], ids=str)
    def test_tensor_dtype(self, call, name, dtype):
        value = torch.ones((), dtype=dtype)
        refused(TypeError, call, name, value, "floating-point", dtype)

    @pytest.mark.parametrize("shape", [(0,), (4,), (1, 1)], ids=str)
    def test_tensor_shape(self, call, name, shape):
        refused(ValueError, call, name, torch.ones(shape), "0-d tensor", list(shape))

    def test_what_holds_no_finite_number(self, call, name):
        refused(ValueError, call, name, 10**400, "finite number", "inf")
        refused(TypeError, call, name, torch.tensor(1.0).to_sparse(), "dense", "sparse_coo")
        refused(ValueError, call, name, torch.ones((), device="meta"), "a number", "meta")


@pytest.mark.parametrize(("call", "name"), TEMPERATURES, ids=named(TEMPERATURES))
@pytest.mark.parametrize("zero", [0, 0.0, -0.0, torch.tensor(0.0)], ids=str)
def test_temperature_zero(call, name, zero):
    refused(ValueError, call, name, zero, "other than zero", 0)


@pytest.mark.parametrize("module", [NTXentLoss, InfoNCELoss])
def test_modules_check_their_settings_at_once(module):
    refused(ValueError, module, "temperature", 0.0, "other than zero", 0)
    refused(TypeError, module, "temperature", "warm", "a number", "str")
    refused(ValueError, module, "reduction", "max", "mean", "max")
    refused(ValueError, ClipLoss, "reduction", None, "mean", None)


def test_a_learned_temperature_that_reaches_zero():
    loss = NTXentLoss(torch.nn.Parameter(torch.tensor(0.1)))
    loss.temperature.data.zero_()
    with pytest.raises(ValueError, match="temperature: expected a finite number other than zero"):
        loss(A, B)


@pytest.mark.parametrize("call", [nt_xent, info_nce, clip])
@pytest.mark.parametrize("value", ["max", None, "", 1], ids=repr)
def test_reduction(call, value):
    refused(ValueError, call, "reduction", value, "mean", value)


@pytest.mark.parametrize("bias", [float("nan"), "x", torch.zeros(3)], ids=str)
def test_logit_bias(bias):
    with pytest.raises((TypeError, ValueError), match=r"logit_bias: expected .*, got"):
        clip(logit_bias=bias)


class TestFilters:
    @pytest.mark.parametrize("call", [row, row_col, gram])
    @pytest.mark.parametrize("which", ["query_ids", "key_ids"])
    def test_lengths(self, call, which):
        good = {"query_ids": IDS, "key_ids": IDS if call is gram else torch.arange(5)}
        where = PairFilter(**good | {which: torch.arange(9)}, keep="same")
        with pytest.raises(ValueError, match=rf"where: expected {which} .* each of .*, got 9"):
            call(where=where)

    def test_device(self):
        where = PairFilter(IDS.to("meta"), IDS.to("meta"), "same")
        with pytest.raises(ValueError, match=r"where: expected query_ids .*cpu, got meta"):
            gram(where=where)

    @pytest.mark.parametrize("ids", [IDS.float(), IDS.bool(), ["a", "b"], [0.5], None], ids=str)
    def test_ids_that_are_no_integers(self, ids):
        with pytest.raises(TypeError, match=r"query_ids: expected an integer tensor.*, got"):
            PairFilter(ids, IDS, "same")
        with pytest.raises(TypeError, match=r"key_ids: expected an integer tensor.*, got"):
            PairFilter(IDS, ids, "same")

    def test_shape_of_ids(self):
        with pytest.raises(ValueError, match=r"key_ids: expected .*1-D.*, got shape \[4, 1\]"):
            PairFilter(IDS, IDS[:, None], "same")

    @pytest.mark.parametrize("keep", ["equal", None, True, ""], ids=repr)
    def test_keep(self, keep):
        with pytest.raises(ValueError, match='keep: expected "same" or "different", got'):
            PairFilter(IDS, IDS, keep)

    @pytest.mark.parametrize("call", [row, gram, nt_xent, info_nce])
    @pytest.mark.parametrize(
        "where", [3, "same", [IDS], {"a": 1}, torch.ones(4, 4, dtype=torch.bool)], ids=str
    )
    def test_where_of_the_wrong_type(self, call, where):
        with pytest.raises(TypeError, match="where: expected a PairFilter or a sequence"):
            call(where=where)

    def test_too_many(self):
        one = PairFilter(IDS, IDS, "different")
        with pytest.raises(ValueError, match="where: expected at most 3 filters, got 4"):
            gram(where=[one] * 4)
        # The losses use up one themselves.
        two = PairFilter(torch.arange(8), torch.arange(8), "different")
        for loss, filters in ((nt_xent, [two] * 3), (info_nce, [one] * 3), (clip, [one] * 3)):
            with pytest.raises(ValueError, match="where: expected at most 2 filters, got 3"):
                loss(where=filters)

    def test_negatives_of_each_querys_own_take_none(self):
        one = PairFilter(IDS, IDS, "different")
        with pytest.raises(ValueError, match="where: expected no filter"):
            info_nce(negative_keys=torch.randn(4, 2, 3), where=one)


class TestOptions:
    @pytest.mark.parametrize("call", [row, row_col, gram])
    @pytest.mark.parametrize("value", [torch.int8, torch.float8_e4m3fn, "float32"], ids=str)
    def test_compute_dtype(self, call, value):
        refused(TypeError, call, "compute_dtype", value, "torch.float32", value)

    @pytest.mark.parametrize("call", [row, row_col, gram])
    @pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
    def test_logit_bound(self, call, value):
        refused(ValueError, call, "logit_bound", value, "finite", value)

    @pytest.mark.parametrize("value", ["5", torch.tensor(5.0), True], ids=str)
    def test_a_logit_bound_is_a_number(self, value):
        kind = type(value).__name__
        refused(TypeError, row, "logit_bound", value, "a number or None", kind)

    @pytest.mark.parametrize("call", [row, gram, nt_xent, info_nce, clip])
    def test_backend(self, call):
        refused(ValueError, call, "backend", "fastest", "one of native, triton", "fastest")


def test_pair_logits():
    with pytest.raises(ValueError, match=r"key: expected as many rows as query, 4, got 5"):
        cl_kernels.pair_logits(X, Y)
    with pytest.raises(TypeError, match=r"key: expected the dtype of query"):
        cl_kernels.pair_logits(X, X.double())
    with pytest.raises(ValueError, match=r"scale: expected a finite number, got nan"):
        cl_kernels.pair_logits(X, X, float("nan"))


def test_contrast():
    with pytest.raises(ValueError, match=r"positive: expected the shape of negatives, \[4\], got"):
        cl_kernels.contrast(torch.ones(4), torch.ones(1))
    with pytest.raises(TypeError, match="negatives: expected a floating-point tensor, got float"):
        cl_kernels.contrast(1.0, torch.ones(1))  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="positive: expected a floating-point tensor, got"):
        cl_kernels.contrast(torch.ones(4), torch.arange(4))


def test_debug_checks_nest():
    with cl_kernels.debug_checks(), cl_kernels.debug_checks():
        assert gram().isfinite().all()


@pytest.mark.parametrize("name", ["normalize", "in_batch_negatives"])
def test_flags_that_are_none(name):
    x = unit_rows(4, 3)
    calls = {
        "info_nce": lambda **flag: cl_kernels.info_nce(x, x, **flag),
        "nt_xent": lambda **flag: cl_kernels.nt_xent(x, x, **flag),
        "clip": lambda **flag: cl_kernels.clip(x, x, 1.0, **flag),
        "siglip": lambda **flag: cl_kernels.siglip(x, x, 1.0, **flag),
        "statistic": lambda **flag: cl_kernels.row_hinge_sum(x, x, **flag),
        "topk": lambda **flag: cl_kernels.topk(x, x, 1, **flag),
    }
    for call in calls.values() if name == "normalize" else [calls["info_nce"]]:
        with pytest.raises(TypeError, match=f"{name}: expected True or False, got 'no'"):
            call(**{name: "no"})


@pytest.mark.parametrize("count", [-1, 6])
def test_numbers_of_negatives_that_are_not_there(count):
    x, own = unit_rows(2, 3), unit_rows(10, 3).view(2, 5, 3)
    with pytest.raises(ValueError, match=f"negative_mask: expected from 0 to 5 .*, got {count}"):
        cl_kernels.info_nce(x, x, own, negative_mask=torch.tensor([5, count]))


def test_a_module_is_named_by_its_own_name():
    with pytest.raises(TypeError, match="SigLipLoss"):
        cl_kernels.SigLipLoss(temperature=0.1)
