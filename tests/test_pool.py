import itertools
import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from sppcls.bench import paired
from sppcls.bench import pooling as bench
from sppcls.bench.pooling import naive
from sppcls.ops import SpatialPyramidPool2d, bin_edges, bins, sliding_window
from sppcls.ops import spatial_pyramid_levels2d as pool_levels
from sppcls.ops import spatial_pyramid_pool2d as pool2d
from sppcls.ops.pyramid import _masked, _plan

PYRAMIDS = [(6, 3, 2, 1), (4, 3, 2, 1), (4, 2, 1), (3, 2, 1)]
LAYOUTS = [torch.contiguous_format, torch.channels_last]
# n: a(windows obtained), the maps where the paper's training rule gives another number of windows than n.
REFUSED = {
    3: "5(4)",
    4: "6(5) 7(6) 11(5)",
    5: "7(6) 8(7) 9(8) 13(6) 14(6) 19(6)",
    6: "8(7) 9(8) 10(9) 11(10) 15(7) 16(7) 17(8) 22(7) 23(7) 29(7)",
    7: "9(8) 10(9) 11(10) 12(11) 13(12) 17(8) 18(8) 19(9) 20(9) 25(8) 26(8) 27(8)",
    8: "10(9) 11(10) 12(11) 13(12) 14(13) 15(14) 19(9) 20(9) 21(10) 22(10) 23(11) 28(9) 29(9) 30(9) 31(10)",
}


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def slow(image, levels, reduce):
    """The definition, a bin at a time (appendix A)."""

    def span(k, n, size):
        return slice(math.floor(k * size / n), math.ceil((k + 1) * size / n))

    h, w = image.shape[1:]
    cells = [(n, channel, i, j) for n in levels for channel in image for i in range(n) for j in range(n)]
    return torch.stack([reduce(channel[span(i, n, h), span(j, n, w)]) for n, channel, i, j in cells])


def gradient(pool, x, levels, weight):
    x = x.detach().requires_grad_()
    pool(x, levels).backward(weight)
    return x.grad


@pytest.mark.parametrize("levels", PYRAMIDS)
def test_equals_one_pool_a_level_for_every_size(levels):
    x = torch.randn(1, 2, 32, 32)
    for h, w in itertools.product(range(1, 33), repeat=2):
        part = x[..., :h, :w]
        assert torch.equal(pool2d(part, levels), naive(part, levels)), (h, w)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("levels", [*PYRAMIDS, (1, 2, 4), (4, 2, 4), (5, 8)])
def test_gradient_equals_where_the_maximum_is_unique(levels, layout):
    for h, w in [(1, 1), (2, 3), (7, 7), (13, 10), (5, 32)]:
        x = torch.randperm(6 * h * w).reshape(2, 3, h, w).float().contiguous(memory_format=layout)
        # Whole numbers: sums come out the same in any order.
        weight = torch.randint(-9, 9, (2, 3 * bins(levels))).float()
        got = gradient(pool2d, x, levels, weight)
        assert torch.equal(got, gradient(naive, x, levels, weight)), (h, w)
        assert got.is_contiguous(memory_format=layout)


@pytest.mark.parametrize("mode", ["max", "avg"])
@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(1, 12), st.integers(1, 12), st.booleans())
def test_random_levels_against_loops(mode, levels, h, w, last):
    x = torch.randn(2, 2, h, w, dtype=torch.float64)
    want = torch.stack([slow(image, levels, torch.max if mode == "max" else torch.mean) for image in x])
    got = pool2d(x.contiguous(memory_format=LAYOUTS[last]), levels, mode)
    assert torch.equal(got, want) if mode == "max" else torch.allclose(got, want)


@pytest.mark.parametrize("rule", ["adaptive", "sliding"])
@pytest.mark.parametrize("mode", ["max", "avg"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_types_layouts_and_empty_batches(dtype, layout, mode, rule):
    x = torch.randn(2, 3, 12, 18).to(dtype).contiguous(memory_format=layout).requires_grad_()
    for part in (x, x[:0]):
        y = pool2d(part, (3, 2, 1), mode, rule)
        assert (y.dtype, y.shape) == (dtype, (len(part), 42))
        (grad,) = torch.autograd.grad(y.sum(), x)
        assert grad.dtype == dtype
        # Every output's gradient, 1, arrives somewhere.
        assert grad.double().sum().item() == pytest.approx(42 * len(part), rel=2e-2)
    if mode == "max":
        assert torch.equal(pool2d(x, (3, 2, 1), mode, rule), naive(x, (3, 2, 1)))


@pytest.mark.parametrize("levels", [(6, 3, 2, 1), (4, 2, 4), (7, 5)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_first_and_second_derivative(levels, layout):
    x = torch.randperm(120).double().view(2, 2, 5, 6) / 60 - 1  # a near tie has another numerical derivative
    x = x.contiguous(memory_format=layout).requires_grad_()
    assert torch.autograd.gradcheck(lambda t: pool2d(t, levels), x)
    assert torch.autograd.gradgradcheck(lambda t: pool2d(t, levels) ** 2, x)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_tie_gives_its_gradient_to_one_element(layout):
    x = torch.zeros(1, 1, 8, 8).contiguous(memory_format=layout)
    torch.set_deterministic_debug_mode("error")
    try:
        grad = gradient(pool2d, x, (4, 2, 1), torch.ones(1, 21))
    finally:
        torch.set_deterministic_debug_mode("default")
    assert grad.sum() == 21
    assert grad.count_nonzero() == 16  # one of the four elements of each of the finest bins; amax would give 64


@pytest.mark.parametrize("layout", LAYOUTS)
def test_nan_and_infinity_pass_as_in_adaptive_max_pool(layout):
    x = torch.randn(2, 3, 9, 11).contiguous(memory_format=layout)
    x[0, 0, 4, 5], x[0, 1, 0, 0], x[1, 1] = math.nan, math.inf, -math.inf
    for levels in PYRAMIDS:
        torch.testing.assert_close(pool2d(x, levels), naive(x, levels), rtol=0, atol=0, equal_nan=True)
        assert pool2d(x, levels)[0, -3].isnan()


def test_one_image_and_odd_memory():
    x = torch.randn(3, 9, 7)
    for view in (x, x.transpose(1, 2), x[:, ::2, 1:], x.flip(0)):
        assert torch.equal(pool2d(view, (3, 1)), naive(view[None], (3, 1))[0])
    batch = torch.randn(5, 7, 9, 2).permute(3, 1, 0, 2)[:, :, ::2]
    weight = torch.ones(2, 7 * 21)
    assert torch.equal(gradient(pool2d, batch, (4, 2, 1), weight), gradient(naive, batch, (4, 2, 1), weight))


@pytest.mark.parametrize("shape", [(2, 3, 8, 12), (3, 8, 12)])
@pytest.mark.parametrize("mode", ["max", "avg"])
@pytest.mark.parametrize("rule", ["adaptive", "sliding"])
def test_levels_are_the_parts_of_the_whole(shape, mode, rule):
    x = torch.randn(shape)
    parts = pool_levels(x, iter((2, 4, 1)), mode, rule)
    assert [part.shape for part in parts] == [(*shape[:-3], 3 * n * n) for n in (2, 4, 1)]
    assert torch.equal(torch.cat(parts, -1), pool2d(x, (2, 4, 1), mode, rule))
    for n, part in zip((2, 4, 1), parts, strict=True):
        assert torch.equal(part, pool2d(x, (n,), mode, rule))


def test_module():
    pool = SpatialPyramidPool2d([6, 3, 2, 1])
    assert (pool.levels, pool.bins, list(pool.parameters())) == ((6, 3, 2, 1), 50, [])
    x = torch.randn(1, 2, 10, 10)
    assert torch.equal(pool(x), pool2d(x, (6, 3, 2, 1)))
    assert torch.equal(SpatialPyramidPool2d((2,), "avg", "sliding")(x), F.avg_pool2d(x, 5).flatten(1))


@pytest.mark.parametrize("mode", ["max", "avg"])
def test_an_exported_program_is_right_away_from_its_traced_size(mode):
    any_size = torch.export.Dim.DYNAMIC
    shapes = ({0: any_size, 2: any_size, 3: any_size},)
    module = SpatialPyramidPool2d((3, 1), mode)
    program = torch.export.export(module, (torch.randn(2, 3, 12, 12),), dynamic_shapes=shapes)
    for shape in [(2, 3, 12, 12), (1, 3, 10, 10), (3, 3, 13, 29)]:
        x = torch.randn(shape)
        got, want = program.module()(x), pool2d(x, (3, 1), mode)
        assert torch.equal(got, want) if mode == "max" else torch.allclose(got, want, atol=1e-6)


@pytest.mark.parametrize(("h", "w", "n"), [(1, 1, 3), (7, 7, 4), (10, 13, 6), (40, 30, 6)])
def test_the_form_for_exporters_equals_the_fast_one(h, w, n):
    x = torch.randn(1, 2, h, w, dtype=torch.float64)
    assert torch.equal(_masked(x, n, "max"), F.adaptive_max_pool2d(x, n))
    assert torch.allclose(_masked(x, n, "avg"), F.adaptive_avg_pool2d(x, n))


def test_every_coarse_bin_is_a_union_of_finer_ones():
    for size, n in itertools.product(range(1, 33), range(1, 13)):
        edges = bin_edges(size, n)
        assert edges == [(math.floor(i * size / n), math.ceil((i + 1) * size / n)) for i in range(n)]
        for m in (m for m in range(1, n) if n % m == 0):
            groups = [edges[i * n // m : (i + 1) * n // m] for i in range(m)]
            assert [(group[0][0], group[-1][1]) for group in groups] == bin_edges(size, m)


def test_levels_nest_where_they_divide():
    assert _plan((6, 3, 2, 1)) == {6: 0, 3: 6, 2: 6, 1: 2}
    assert _plan((1, 2, 4, 2)) == {4: 0, 2: 4, 1: 2}
    assert _plan((4, 3, 2, 1)) == {4: 0, 3: 0, 2: 4, 1: 2}


def test_the_sliding_rule_refuses_the_pairs_of_the_paper_and_no_other():
    refused = {(n, int(a)): got for n, row in REFUSED.items() for a, got in re.findall(r"(\d+)\((\d+)\)", row)}
    assert len(refused) == 47
    for n, a in itertools.product(range(1, 9), range(1, 33)):
        if a < n or (n, a) in refused:
            got = refused.get((n, a), 0)
            with pytest.raises(ValueError, match=rf"a={a}, n={n} gives {got} windows .*not {n}; use rule='adaptive'"):
                pool2d(torch.zeros(1, n, a), (n,), rule="sliding")
        else:
            window, stride = sliding_window(a, n)
            assert (window, stride) == (math.ceil(a / n), math.floor(a / n))
            x = torch.randn(1, 1, a, a)
            windows = x.unfold(2, window, stride).unfold(3, window, stride)
            assert windows.shape[2:4] == (n, n)
            assert torch.equal(pool2d(x, (n,), rule="sliding"), windows.amax((4, 5)).flatten(1))


@pytest.mark.parametrize("shape", [(3, 3), (1, 1, 1, 3, 3), (2, 3, 0, 4), (2, 3, 4, 0), (0, 4, 4)])
def test_refuses_a_map_of_no_use(shape):
    says = "C, H and W must be at least 1" if 0 in shape else r"expected \[N, C, H, W\] or \[C, H, W\]"
    with pytest.raises(ValueError, match=rf"shape {re.escape(str(shape))}; {says}"):
        pool2d(torch.zeros(shape), (2, 1))
    with pytest.raises(TypeError, match=r"got torch.int64, shape \(1, 4, 4\)"):
        pool2d(torch.zeros(1, 4, 4, dtype=torch.int64), (2, 1))


@pytest.mark.parametrize("levels", [(), (2, 0), (-1,), (2.0,), (True,), ("4", "2"), (2, None), 4])
def test_refuses_levels_that_make_no_sense(levels):
    error = ValueError if levels in ((), (2, 0), (-1,)) else TypeError
    for make in (lambda: pool2d(torch.zeros(1, 4, 4), levels), lambda: SpatialPyramidPool2d(levels)):
        with pytest.raises(error, match=rf"levels: got {re.escape(repr(levels))}, .*positive integer"):
            make()


def test_refuses_an_unknown_mode_or_rule():
    with pytest.raises(ValueError, match="mode: got 'mex'; did you mean 'max'"):
        pool2d(torch.zeros(1, 4, 4), (2,), mode="mex")
    with pytest.raises(ValueError, match="rule: got 'adaptiv'; did you mean 'adaptive'"):
        SpatialPyramidPool2d((2,), rule="adaptiv")


def test_the_paired_timer_runs_both_in_turn():
    calls = []
    ours, slow, ratio = paired(lambda: calls.append("a"), lambda: calls.append("b"), repeats=3, warmup=2)
    assert calls == ["a", "b"] * 5
    assert min(ours, slow, ratio) > 0


def test_the_bench_reports_every_cell(monkeypatch):
    monkeypatch.setattr(bench, "SHAPES", ((1, 2, 6, 6),))
    report = bench.pool(repeats=1)
    assert all(len(row) == len(report.columns) for row in report.rows)
    assert len(report.rows) == 4  # 2 layouts, 2 pyramids; all threads are one here
    assert report.summary["worst_ratio"] == min(row[-1] for row in report.rows)
