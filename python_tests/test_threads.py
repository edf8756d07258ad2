"""What a ``with`` block decides holds in its own thread, and ends with it."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest
import torch

import cl_kernels
from cl_kernels import _dispatch
from cl_kernels.reading import readable
from python_tests.helpers import a_request, unit_rows


def chosen():
    return cl_kernels.explain(cl_kernels.nt_xent, unit_rows(4, 3), unit_rows(4, 3)).plans[0].call


def in_another_thread(function):
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result()


def test_explain_leaves_other_threads_alone():
    x, y = unit_rows(8, 4), unit_rows(8, 4)
    expected = cl_kernels.nt_xent(x, y)
    inside, leave = threading.Event(), threading.Event()

    def explained(a, b):
        inside.set()
        leave.wait(30)
        return cl_kernels.nt_xent(a, b)

    with ThreadPoolExecutor(1) as pool:
        explanation = pool.submit(cl_kernels.explain, explained, x, y)
        assert inside.wait(30)
        assert cl_kernels.nt_xent(x, y) == expected
        leave.set()
        assert len(explanation.result().plans) == 1
    assert cl_kernels.nt_xent(x, y) == expected


def test_a_backend_is_that_of_its_thread():
    with cl_kernels.use_backend("reference"):
        assert chosen().backend == "reference"
        assert in_another_thread(lambda: chosen().backend) != "reference"
    assert chosen().backend != "reference"


def test_threads_that_leave_in_any_order():
    first_in, second_in, first_out = (threading.Event() for _ in range(3))

    def first():
        with cl_kernels.use_backend("reference"):
            first_in.set()
            second_in.wait(30)
        first_out.set()
        return chosen().backend

    def second():
        first_in.wait(30)
        with cl_kernels.use_backend("chunked"):
            second_in.set()
            first_out.wait(30)
            return chosen().backend

    with ThreadPoolExecutor(2) as pool:
        outside, inside = pool.submit(first), pool.submit(second)
        assert inside.result() == "chunked"
        assert outside.result() == _dispatch.choose(None, a_request())


def test_blocks_inside_blocks():
    outside = chosen().backend
    with cl_kernels.use_backend("reference"):
        with pytest.raises(KeyError), cl_kernels.use_backend("chunked"):
            assert chosen().backend == "chunked"
            raise KeyError
        assert chosen().backend == "reference"
        with ExitStack() as stack:
            stack.enter_context(cl_kernels.use_backend("chunked"))
        assert chosen().backend == "reference"
    assert chosen().backend == outside


def test_tasks_and_generators_of_one_thread_leave_nothing_behind():
    outside = chosen().backend

    async def task(name, seconds):
        with cl_kernels.use_backend(name):
            await asyncio.sleep(seconds)

    async def both():
        await asyncio.gather(task("chunked", 0.01), task("reference", 0.02))

    asyncio.run(both())
    assert chosen().backend == outside

    def suspended():
        with cl_kernels.use_backend("chunked"):
            yield

    generator = suspended()
    next(generator)
    with cl_kernels.use_backend("reference"):
        generator.close()
        assert chosen().backend == "reference"
    assert chosen().backend == outside


def test_debug_checks_are_those_of_their_thread():
    on_device = torch.empty(2, device="meta")
    with cl_kernels.debug_checks():
        assert readable(on_device)
        assert not in_another_thread(lambda: readable(on_device))
        with cl_kernels.debug_checks():
            pass
        assert readable(on_device)
    assert not readable(on_device)


def test_backward_in_another_thread():
    """Gradients are computed by the backend of the forward call."""
    x, y = (unit_rows(8, 4).requires_grad_() for _ in range(2))
    with cl_kernels.use_backend("reference"):
        rows = cl_kernels.nt_xent(x, y, reduction="none")
    in_another_thread(lambda: rows.sum().backward())
    expected = torch.autograd.grad(cl_kernels.nt_xent(x, y, reduction="sum"), x)[0]
    torch.testing.assert_close(x.grad, expected)


def test_many_threads_at_once():
    x, y = unit_rows(64, 16), unit_rows(64, 16)
    expected = cl_kernels.nt_xent(x, y)

    def work(turn):
        if turn % 3 == 0:
            return len(cl_kernels.explain(cl_kernels.nt_xent, x, y).plans) == 1
        with cl_kernels.use_backend(("native", "chunked")[turn % 2]):
            return torch.allclose(cl_kernels.nt_xent(x, y), expected)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(200)))
