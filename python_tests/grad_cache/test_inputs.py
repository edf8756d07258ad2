"""What GradCache takes as inputs, how it cuts them, and what it refuses."""

from collections import UserDict

import numpy as np
import pytest
import torch
from torch import nn

import cl_kernels
from cl_kernels.grad_cache import GradCache, grad_cache_step
from python_tests.grad_cache.towers import (
    CHUNK,
    EXACT,
    ROWS,
    WIDTH,
    Recorder,
    batch,
    encoder,
    gradients,
    loss_function,
)


def test_forms_of_inputs():
    module, x = encoder(), batch()
    seen = []

    def encode(samples, features, *, factor=1.0):
        assert isinstance(samples, list) and isinstance(features["array"], np.ndarray)
        assert features["flag"] is True and features["nothing"] is None
        assert features["scalar"].dim() == 0
        assert len(samples) == len(features["array"]) == len(features["x"])
        seen.extend(zip(samples, features["array"].tolist(), strict=True))
        return module(factor * features["x"])

    features = {
        "x": x,
        "array": np.arange(ROWS),
        "flag": True,
        "nothing": None,
        "scalar": torch.tensor(3),
    }
    samples = [str(i) for i in range(ROWS)]
    tower = (samples, UserDict(features))
    loss_function(module(x), module(x + 1)).backward()
    expected = gradients(module)
    GradCache([encode, module], loss_function, chunk_size=CHUNK).step(tower, x + 1)
    torch.testing.assert_close(gradients(module), expected, **EXACT)
    assert seen == [(str(i), i) for i in range(ROWS)] * 2

    mask = torch.ones(ROWS, 1)
    tower = (samples, {**features, "attention_mask": mask})
    GradCache([encode, encode], loss_function, max_tokens=5).step(tower, tower)
    assert len(seen) == 6 * ROWS


class TextEncoder(nn.Module):
    """Mean of token embeddings over the attention mask; a positional one shows wrong columns."""

    def __init__(self, dropout=0.0):
        super().__init__()
        self.tokens, self.places = nn.Embedding(50, 8), nn.Embedding(20, 8)
        self.dropout = nn.Dropout(dropout)
        self.shapes = []

    def forward(self, input_ids, attention_mask, token_type_ids=None, pooled=True):
        self.shapes.append(tuple(input_ids.shape))
        assert token_type_ids is None or token_type_ids.shape == input_ids.shape
        x = self.tokens(input_ids) * (1 + self.places.weight[: input_ids.shape[1]])
        x = self.dropout(x.tanh()) * attention_mask[:, :, None]
        x = x.sum(1) / attention_mask.sum(1, keepdim=True)
        return x if pooled else {"last": x}


def text_batch(lengths, width=20):
    lengths = torch.tensor(lengths)
    return {
        "input_ids": torch.randint(0, 50, (len(lengths), width)),
        "attention_mask": (torch.arange(width) < lengths[:, None]).long(),
        "token_type_ids": torch.zeros(len(lengths), width, dtype=torch.long),
    }


LENGTHS = [3, 12, 1, 7, 7, 2, 15, 4, 9, 3]


@pytest.mark.parametrize("nested", [False, True])
def test_chunks_by_tokens(nested):
    module = TextEncoder().double()
    one, two = text_batch(LENGTHS), text_batch(LENGTHS[::-1])
    loss_function(module(**one), module(**two)).backward()
    expected = gradients(module)
    module.shapes.clear()
    if nested:
        cache = GradCache(lambda features: module(**features), loss_function, max_tokens=24)
        cache.step((one,), (two,))
    else:
        GradCache(module, loss_function, max_tokens=24).step(one, two)
    torch.testing.assert_close(gradients(module), expected, **EXACT)
    # 15 | 12, 9 | 7, 7, 4 | 3, 3, 2, 1: each as wide as its longest
    assert module.shapes == [(1, 15), (2, 12), (3, 7), (4, 3)] * 4


def test_chunks_by_tokens_and_rows():
    module = TextEncoder().double()
    GradCache(module, loss_function, max_tokens=24, chunk_size=2).step(*[text_batch(LENGTHS)] * 2)
    assert module.shapes[:5] == [(1, 15), (2, 12), (2, 7), (2, 4), (2, 3)]


def test_images_by_rows_and_texts_by_tokens():
    images, texts = Recorder(nn.Linear(WIDTH, 8).double()), TextEncoder().double()
    x, text = batch(len(LENGTHS)), text_batch(LENGTHS)
    loss_function(images(x), texts(**text)).backward()
    expected = gradients(images, texts)
    images.calls.clear(), texts.shapes.clear()
    GradCache([images, texts], loss_function, max_tokens=40, chunk_size=5).step(x, text)
    torch.testing.assert_close(gradients(images, texts), expected, **EXACT)
    assert [size for size, _ in images.calls] == [5, 5] * 2
    assert texts.shapes == [(2, 15), (4, 9), (4, 3)] * 2


def test_padding_on_the_left_is_kept():
    inputs = text_batch([3, 5, 4])
    flipped = inputs | {"attention_mask": inputs["attention_mask"].flip(1)}
    module = TextEncoder().double()
    GradCache(module, loss_function, max_tokens=40).step(flipped, flipped)
    assert module.shapes[:2] == [(2, 20), (1, 20)]


def test_dropout_with_chunks_by_tokens():
    """One graph that takes the rows in the same order and shape."""
    module = TextEncoder(dropout=0.4).double()
    one, two = text_batch(LENGTHS), text_batch(LENGTHS[::-1])

    def embed(inputs):
        lengths = inputs["attention_mask"].sum(1)
        order = sorted(range(len(lengths)), key=lambda i: -int(lengths[i]))
        groups = order[:1], order[1:3], order[3:6], order[6:]
        done = {}
        for group in groups:
            columns = int(lengths[group[0]])
            x = module(inputs["input_ids"][group, :columns],
                       inputs["attention_mask"][group, :columns])  # fmt: skip
            done |= dict(zip(group, x, strict=True))
        return torch.stack([done[i] for i in range(len(lengths))])

    torch.manual_seed(7)
    loss_function(embed(one), embed(two)).backward()
    expected = gradients(module)
    torch.manual_seed(7)
    GradCache(module, loss_function, max_tokens=24).step(one, two)
    torch.testing.assert_close(gradients(module), expected, **EXACT)


def test_get_embedding():
    module = TextEncoder().double()
    one, two = text_batch(LENGTHS), text_batch(LENGTHS)
    loss_function(module(**one), module(**two)).backward()
    expected = gradients(module)
    seen = []

    def get_embedding(output, inputs):
        seen.append(inputs["attention_mask"].shape)
        return output["last"]

    cache = GradCache(module, loss_function, chunk_size=5, get_embedding=get_embedding)
    cache.step(one | {"pooled": False}, two | {"pooled": False})
    torch.testing.assert_close(gradients(module), expected, **EXACT)
    assert seen == [(5, 20)] * 8


def test_hugging_face_model():
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=20,
    )  # fmt: skip
    model = transformers.BertModel(config).double()
    one, two = (transformers.BatchEncoding(text_batch(LENGTHS)) for _ in range(2))

    def pool(output, inputs):
        mask = inputs["attention_mask"][:, :, None]
        return (output.last_hidden_state * mask).sum(1) / mask.sum(1)

    model.eval()
    loss_function(*(pool(model(**x), x) for x in (one, two))).backward()
    expected = gradients(model)
    GradCache(model, loss_function, max_tokens=40, get_embedding=pool).step(one, two)
    torch.testing.assert_close(gradients(model), expected, rtol=1e-9, atol=1e-12)
    model.train()  # with dropout
    GradCache(model, loss_function, max_tokens=40, get_embedding=pool).step(one, two)


NOTHING = torch.empty(0, WIDTH, dtype=torch.float64)
LINEAR = nn.Linear(WIDTH, 5).double()


def ok(x):
    return LINEAR(x)


BAD_CALLS = {
    "rows": (lambda x: ok(x)[:-1], {}, ValueError, r"encoders\[0\]: expected .* \[4, width\]"),
    "one number": (lambda x: ok(x)[:, 0], {}, ValueError, r"encoders\[0\]: .* shape \[4\]"),
    "ragged": (lambda x: ok(x)[:, : len(x)], {}, ValueError, "one shape and dtype from all"),
    "dictionary": (lambda x: {"x": ok(x)}, {}, TypeError, "got dict; get_embedding may"),
    "integers": (lambda x: ok(x).long(), {}, TypeError, "floating-point embeddings"),
    "no grad": (lambda x: ok(x).detach(), {}, ValueError, "loss: expected one that requires"),
    "empty": (ok, {"inputs": [NOTHING, NOTHING]}, ValueError, r"inputs\[0\]: .* at least 1"),
    "no inputs": (ok, {"inputs": []}, ValueError, "inputs: expected at least one"),
    "bare tensor": (ok, {"inputs": NOTHING}, TypeError, "inputs: expected a list"),
    "number": (ok, {"inputs": [3, 4]}, TypeError, r"inputs\[0\]: expected a tensor"),
    "lengths": (ok, {"inputs": [(batch(), batch(3))]}, ValueError, r"one length, got \[3, 22\]"),
    "too few encoders": ([ok], {}, ValueError, "encoders: expected one for each of the 2"),
    "encoder": ("model", {}, TypeError, "encoders: expected a callable, got str"),
    "loss": (ok, {"loss": 1.0}, TypeError, "loss: expected a callable"),
    "chunk size 0": (ok, {"chunk_size": 0}, ValueError, "chunk_size: .* at least 1, got 0"),
    "chunk size": (ok, {"chunk_size": 2.5}, TypeError, "chunk_size: expected a whole"),
    "chunk sizes": (ok, {"chunk_size": [2]}, ValueError, "chunk_size: expected one for each"),
    "no chunk size": (ok, {"chunk_size": None}, ValueError, "chunk_size: expected a number"),
    "no mask": (
        ok, {"max_tokens": 9, "chunk_size": None}, ValueError, r"'attention_mask' in inputs\[0\]",
    ),
    "max_tokens 0": (ok, {"max_tokens": 0}, ValueError, "max_tokens: expected at least 1"),
    "steps": (ok, {"accumulation_steps": 0}, ValueError, "accumulation_steps: expected"),
    "unpaired": (ok, {"inputs": [batch(), batch(5)]}, ValueError, "positive_key: expected as"),
    "loss of rows": (
        ok, {"loss": lambda x, y: (x * y).sum(1)}, ValueError, r"loss: .* got shape \[22\]",
    ),
    "loss of numbers": (ok, {"loss": lambda x, y: 3.0}, TypeError, "loss: expected a 0-d"),
    "not finite": (
        ok, {"loss": lambda x, y: x.sum() / 0}, FloatingPointError, "a finite number, got",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_CALLS)
def test_errors_before_any_gradient(case):
    encoders, options, error, message = BAD_CALLS[case]
    LINEAR.zero_grad()
    call = {"inputs": [batch(), batch()], "loss": cl_kernels.info_nce, "chunk_size": CHUNK}
    with pytest.raises(error, match=message):
        grad_cache_step(encoders, **(call | options))
    assert gradients(LINEAR) == [None, None]


def test_samples_above_the_token_budget():
    """Each is a chunk of its own."""
    module = TextEncoder().double()
    one, two = text_batch(LENGTHS), text_batch(LENGTHS[::-1])
    loss_function(module(**one), module(**two)).backward()
    expected = gradients(module)
    module.shapes.clear()
    GradCache(module, loss_function, max_tokens=10, chunk_size=4)(one, two).backward()
    torch.testing.assert_close(gradients(module), expected, **EXACT)
    assert module.shapes == [(1, 15), (1, 12), (1, 9), (1, 7), (1, 7), (2, 4), (3, 3)] * 4


def test_module_that_hides_its_graph():
    class Detached(nn.Linear):
        def forward(self, x):
            return super().forward(x).detach()

    modules = [LINEAR, Detached(WIDTH, 5).double()]
    with pytest.raises(ValueError, match=r"encoders\[1\]: expected embeddings that require grad"):
        GradCache(modules, loss_function, chunk_size=CHUNK).step(batch(), batch())
