"""The modules are their functions; temperatures are learned, kept as buffers, or plain numbers."""

import copy
import inspect
import os

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode

import cl_kernels
from cl_kernels import ClipLoss, InfoNCELoss, NTXentLoss, PairFilter
from python_tests.helpers import views


def test_same_as_the_functions(backend):
    first, second = views(20)
    labels = torch.arange(20) % 6
    queue, target, where = (
        torch.randn(9, 24),
        torch.arange(20),
        PairFilter(labels, labels, "different"),
    )
    some = {"reduction": "sum", "normalize": False, "backend": backend}
    pairs = [
        (NTXentLoss(), cl_kernels.nt_xent, (first, second), {}),
        (NTXentLoss(0.2, **some), cl_kernels.nt_xent, (first, second, queue), {}),
        (InfoNCELoss(), cl_kernels.info_nce, (first, second), {}),
        (InfoNCELoss(0.3, in_batch_negatives=True, **some), cl_kernels.info_nce,
         (first, second, queue), {"target": target, "where": where}),
        (ClipLoss(), cl_kernels.clip, (first, second, 9.0), {}),
        (ClipLoss(**some), cl_kernels.clip, (first, second, 9.0, -3.0), {}),
    ]  # fmt: skip
    for module, function, arguments, named in pairs:
        expected = named.copy()
        if isinstance(module, NTXentLoss):
            expected["temperature"] = module.temperature
            if len(arguments) == 3:
                *arguments, expected["negative_keys"] = arguments
                named["negative_keys"] = expected["negative_keys"]
        elif isinstance(module, InfoNCELoss):
            expected["temperature"] = module.temperature
            expected["in_batch_negatives"] = module.in_batch_negatives
        expected |= {k: getattr(module, k) for k in ("normalize", "reduction", "backend")}
        assert torch.equal(module(*arguments, **named), function(*arguments, **expected))


@pytest.mark.parametrize("module", [NTXentLoss, InfoNCELoss])
def test_learned_temperature(module):
    loss = module(nn.Parameter(torch.tensor(0.3)))
    assert [name for name, _ in loss.named_parameters()] == ["temperature"]
    optimizer = torch.optim.SGD(loss.parameters(), lr=0.1)
    loss(*views(20)).backward()
    optimizer.step()
    assert loss.temperature != 0.3
    assert list(loss.state_dict()) == ["temperature"]


@pytest.mark.parametrize("module", [NTXentLoss, InfoNCELoss])
def test_temperature_as_buffer_or_number(module):
    buffered, plain = module(torch.tensor(0.25)), module(0.25)
    assert not list(buffered.parameters())
    assert list(buffered.state_dict()) == ["temperature"]
    assert not plain.state_dict()
    assert buffered.to(torch.float64).temperature.dtype == torch.float64
    pair = views(20)
    assert torch.equal(buffered(*pair), plain(*pair))
    plain_from_state = module(torch.tensor(9.0))
    plain_from_state.load_state_dict(module(torch.tensor(0.25)).state_dict())
    assert torch.equal(plain_from_state(*pair), plain(*pair))


def test_repr():
    shown = "(temperature=0.5, normalize=True, reduction='mean')"
    assert repr(NTXentLoss()) == "NTXentLoss" + shown
    shown = (
        "(temperature=0.5, normalize=True, positives='outside', label_smoothing=0.0, "
        "reduction='mean')"
    )
    assert repr(InfoNCELoss(torch.tensor(0.5))) == "InfoNCELoss" + shown
    assert repr(InfoNCELoss(nn.Parameter(torch.tensor(0.5)))) == "InfoNCELoss" + shown
    shown = "(label_smoothing=0.0, normalize=False, reduction='mean')"
    assert repr(ClipLoss()) == "ClipLoss" + shown


@pytest.mark.parametrize("module", [NTXentLoss, InfoNCELoss, ClipLoss])
def test_repr_shows_every_setting(module):
    given = {"temperature": 0.25, "normalize": False, "in_batch_negatives": True, "hardest": 3}
    given |= {"reduction": "sum", "backend": "chunked", "label_smoothing": 0.1}
    given |= {"positives": "inside", "group": None, "gather": "ring"}
    names = inspect.signature(module).parameters
    assert names.keys() <= given.keys()
    settings = {name: given[name] for name in names}
    assert eval(repr(module(**settings))).__dict__.items() >= settings.items()


class TestReprWithoutAValue:
    def test_on_meta(self):
        with torch.device("meta"):
            loss = NTXentLoss(nn.Parameter(torch.tensor(0.5)))
        assert "temperature=<tensor on meta>" in repr(loss)

    def test_fake(self):
        outside = NTXentLoss(nn.Parameter(torch.tensor(0.5)))
        with FakeTensorMode():
            inside = NTXentLoss(nn.Parameter(torch.rand(())))
            for loss in (inside, outside):
                assert "temperature=<tensor on cpu>" in repr(loss)

    def test_while_compiled(self):
        loss = NTXentLoss(nn.Parameter(torch.tensor(0.5)))
        compiled = torch.compile(lambda x: (x, repr(loss)), fullgraph=True, backend="eager")
        assert compiled(torch.ones(1))[1].startswith("NTXentLoss(temperature=")


def test_clip_output_dict():
    first, second = views(20)
    loss = ClipLoss(normalize=True)
    plain = loss(first, second, logit_scale=5.0)
    named = loss(image_features=first, text_features=second, logit_scale=5.0, output_dict=True)
    assert list(named) == ["contrastive_loss"]
    assert torch.equal(named["contrastive_loss"], plain)


def test_what_is_said_in_the_wrong_place():
    """A setting in a call, and what belongs to a batch in the constructor."""
    with pytest.raises(TypeError, match="temperature: expected when NTXentLoss is made, got it in"):
        NTXentLoss()(*views(4), temperature=0.2)
    with pytest.raises(TypeError, match="where: expected in a call of NTXentLoss, not here"):
        NTXentLoss(where=())


class Logging(NTXentLoss):
    """As a user's class that holds what cannot be copied."""

    def __init__(self, *arguments, **settings):
        super().__init__(*arguments, **settings)
        self.log = open(os.devnull, "w")  # noqa: SIM115

    def __getstate__(self):
        return self.__dict__ | {"log": None}

    def __setstate__(self, state):
        super().__setstate__(state)
        self.log = open(os.devnull, "w")  # noqa: SIM115


def test_copies_are_made_as_a_subclass_says():
    temperature = torch.nn.Parameter(torch.tensor(0.2))
    loss = torch.nn.ModuleList([Logging(temperature), Logging(temperature)])
    first, second = copy.deepcopy(loss)
    assert first.temperature is second.temperature is not temperature
    assert first.log is not loss[0].log and not first.log.closed
    for each in (*loss, first, second):
        each.log.close()
