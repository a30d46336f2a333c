"""The kernels' sums against those of `ops.waves` in float64, for shapes that fit no tile, in memory full of NaN."""

import pytest
import torch
import triton
import triton.language as tl

from efa_addons.ops import parts, triton_kernels, triton_waves, waves
from efa_addons.ops.grid import make_grid


def case(num_atoms, num_values, num_d=2, components=0, graph=(0,), groups=((1, 1), (14, 2)), turned=False):
    """Arguments x, y, r, ω, T and waves of float64; components: of y, mixed by weights; 0: unmixed."""
    torch.manual_seed(0)
    grid = make_grid(groups, [1.0])
    num_directions, channels, num_blocks = len(grid.directions), sum(grid.num_channels), len(graph)
    weights = torch.randn(num_directions, components, dtype=torch.float64) if components else None
    described = waves.Waves(
        grid.directions.double(), weights, grid.num_directions, grid.num_channels, torch.tensor(graph), max(graph) + 1,
        list(graph) == list(range(len(graph))), turned,
    )  # fmt: skip
    shapes = [
        (num_blocks, num_d, channels, num_atoms), (num_blocks, max(1, components), num_atoms, num_values),
        (num_blocks, 3, num_atoms), (channels,), (max(graph) + 1, parts.num_rows(described, num_d), num_values),
    ]  # fmt: skip
    return [torch.randn(shape, dtype=torch.float64) for shape in shapes], described


def single(arguments, described):
    """In float32, each with NaN before and after it in memory."""

    def between(tensor):
        if tensor is None:
            return None
        around = torch.full([tensor.numel() + 4096], torch.nan)
        around[2048:-2048] = tensor.flatten()
        return around[2048:-2048].view(tensor.shape)

    weights, directions = between(described.weights), between(described.directions)
    return [between(tensor) for tensor in arguments], described._replace(directions=directions, weights=weights)


@pytest.fixture(autouse=True)
def poisoned():
    """torch.empty gives NaN."""
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


def close(found, expected):
    for value, reference in zip(found, expected, strict=True):
        assert (value is None) == (reference is None)
        if value is not None:
            assert value.shape == reference.shape
            assert (value - reference).norm() <= 3e-6 * reference.norm()


CASES = {
    "one atom": {"num_atoms": 1, "num_values": 1},
    "more than a tile of atoms": {"num_atoms": 66, "num_values": 3},
    "more than a tile of values": {"num_atoms": 5, "num_values": 67, "groups": ((6, 1),)},
    "tiles of many values": {"num_atoms": 3, "num_values": 70, "groups": ((50, 3),)},
    "more than a tile of phases": {"num_atoms": 3, "num_values": 2, "groups": ((50, 3), (1, 1))},
    "three d": {"num_atoms": 5, "num_values": 4, "num_d": 3},
    "blocks of graphs": {"num_atoms": 5, "num_values": 4, "graph": (0, 0, 2, 2, 3)},
    "a graph each": {"num_atoms": 5, "num_values": 4, "graph": (0, 1, 2)},
    "mixed, turned": {"num_atoms": 5, "num_values": 3, "components": 2, "turned": True, "graph": (0, 0)},
}


@pytest.mark.parametrize("processors", [1, 64], ids=["whole", "shared"])
@pytest.mark.parametrize("name", CASES)
def test_first_derivatives(name, processors, monkeypatch):
    """Shared: each sum is the work of several programs."""
    monkeypatch.setattr(triton_waves, "_processors", lambda device: processors)
    arguments, described = case(**CASES[name])
    expected = waves.partials(*arguments, described, [True] * 5)
    arguments, described = single(arguments, described)
    found = triton_waves.partials(*arguments, described, [True] * 5)
    close(found, expected)
    again = triton_waves.partials(*arguments, described, [True] * 5)
    assert all(torch.equal(one, other) for one, other in zip(found, again, strict=True))


def test_long_sums_are_shared(monkeypatch):
    """As long as the shares have room."""
    assert [triton_waves._shares(terms, 1, "tf32x3") for terms in (0, 1, 2048, 2049, 10_000)] == [1, 1, 1, 2, 5]
    assert triton_waves._shares(10_000, 2**28, "tf32x3") == 2 and triton_waves._shares(10_000, 2**30, "tf32x3") == 1
    assert triton_waves._shares(20_000, 1, "tf32") == 2
    monkeypatch.setattr(triton_waves, "_LONGEST", {"": 16, "tf32x3": 16})
    arguments, described = case(66, 3, groups=((50, 3),))
    expected = waves.partials(*arguments, described, [True] * 5)
    shared, sums = [], triton_waves._splits
    monkeypatch.setattr(triton_waves, "_splits", lambda *given: shared.append(sums(*given)) or shared[-1])
    arguments, described = single(arguments, described)
    close(triton_waves.partials(*arguments, described, [True] * 5), expected)
    assert shared[:2] == [3, 4]  # `state` and `read_out`: by all tiles there are


@pytest.mark.parametrize("place", [1, 4], ids=["read_out", "state"])
def test_what_tf32_cuts_off_is_made_up_for(place, monkeypatch):
    """Features lose 3.5e-4 of themselves on average; sums do not. Where all terms are positive nothing else hides it."""
    monkeypatch.setenv("EFA_ADDONS_PRECISION", "tf32")
    arguments, described = case(66, 40, groups=((26, 5),))
    arguments = [tensor.abs() + 0.5 for tensor in arguments]
    arguments[2] *= 0.1  # phases below a right angle
    needed = [number == place for number in range(5)]
    expected = waves.partials(*arguments, described, needed)[place]
    arguments, described = single(arguments, described)
    found = triton_waves.partials(*arguments, described, needed)[place]
    mean = (found / expected - 1).mean()
    assert abs(mean) < 8e-5 and (found / expected - 1).std() > 1e-6


ALONG = ["x", "y", "r", "f", "t", "xyrft", "yt", "rf"]


@pytest.mark.parametrize("along", ALONG)
@pytest.mark.parametrize("components", [0, 2], ids=["unmixed", "mixed"])
def test_second_derivatives(along, components):
    arguments, described = case(5, 3, components=components, graph=(0, 0, 1), groups=((1, 1), (6, 1)))
    given = [torch.randn_like(a) if name in along else None for name, a in zip("xyrft", arguments, strict=True)]
    expected = waves.second_partials(*arguments, described, given, [True] * 5)
    arguments, described = single(arguments, described)
    given = [None if d is None else d.float() for d in given]
    close(triton_waves.second_partials(*arguments, described, given, [True] * 5), expected)


def test_launches_name_arguments(monkeypatch):
    """The interpreter takes any keyword, the compiler only those of a kernel and its own."""
    calls = []

    class Recorded:
        def __init__(self, kernel):
            self.kernel = kernel

        def __getitem__(self, grid):
            def launch(*arguments, **constants):
                calls.append((self.kernel, arguments, constants))
                self.kernel[grid](*arguments, **constants)

            return launch

    names = ("arrange", "state", "read_out", "pull")
    for name in names:
        monkeypatch.setattr(triton_kernels, name, Recorded(getattr(triton_kernels, name)))
    arguments, described = case(5, 3, components=2)
    arguments, described = single(arguments, described)
    triton_waves.partials(*arguments, described, [True] * 5)
    assert {kernel.fn.__name__ for kernel, _, _ in calls} == set(names)
    for kernel, arguments, constants in calls:
        assert constants["enable_fp_fusion"] is True  # unasked, newer releases of Triton warn, or do not
        given = [name for name in constants if name not in ("num_warps", "num_stages", "maxnreg", "enable_fp_fusion")]
        assert sorted([*kernel.arg_names[: len(arguments)], *given]) == sorted(kernel.arg_names)


@pytest.mark.parametrize("missing", ["y", "state"])
def test_second_derivatives_without_one(missing):
    arguments, described = case(5, 3, groups=((1, 1), (6, 1)))
    given = [torch.randn_like(a) for a in arguments]
    for tensors in (arguments, given):
        tensors[1 if missing == "y" else 4] = None
    expected = waves.second_partials(*arguments, described, given, [True] * 5)
    arguments, described = single(arguments, described)
    given = [None if d is None else d.float() for d in given]
    close(triton_waves.second_partials(*arguments, described, given, [True] * 5), expected)


@pytest.mark.parametrize("place", range(5))
def test_one_derivative_alone(place):
    """First and second: what is not asked for is none, and the others do not notice."""
    arguments, described = case(5, 3, groups=((1, 1), (6, 1)))
    given, needed = [torch.randn_like(a) for a in arguments], [number == place for number in range(5)]
    expected = waves.partials(*arguments, described, needed)
    second = waves.second_partials(*arguments, described, given, [True] * 5)
    second = [part if wanted else None for part, wanted in zip(second, needed, strict=True)]
    close(waves.second_partials(*arguments, described, given, needed), second)
    arguments, described = single(arguments, described)
    close(triton_waves.partials(*arguments, described, needed), expected)
    close(triton_waves.second_partials(*arguments, described, [d.float() for d in given], needed), second)


@pytest.mark.parametrize("shape", [{"num_atoms": 0, "num_values": 3}, {"num_atoms": 0, "num_values": 3, "graph": (0, 0, 1)}])
def test_no_atoms(shape):
    arguments, described = case(**shape)
    single_ones = [a.float() for a in arguments]
    close(triton_waves.partials(*single_ones, described, [True] * 5), waves.partials(*arguments, described, [True] * 5))
    found = triton_waves.second_partials(*single_ones, described, single_ones, [True] * 5)
    close(found, [torch.zeros_like(a) for a in arguments])


@triton.jit
def evaluate(phase, cos, sin, SIZE: tl.constexpr, TURNED: tl.constexpr):
    number = tl.arange(0, SIZE)
    c, s = triton_kernels.cos_sin(tl.load(phase + number), TURNED, "ieee")
    tl.store(cos + number, c)
    tl.store(sin + number, s)


@pytest.mark.parametrize(("largest", "error"), [(1, 1e-7), (1e2, 1e-7), (1e4, 1e-7), (1e5, 1.5e-6)])
@pytest.mark.parametrize("turned", [False, True])
def test_cos_and_sin(largest, error, turned):
    phase = torch.empty(2**14).uniform_(-largest, largest)
    phase[:3] = torch.tensor([0.0, torch.pi / 4, -torch.pi / 2])
    cos, sin = torch.empty_like(phase), torch.empty_like(phase)
    evaluate[(1,)](phase, cos, sin, SIZE=2**14, TURNED=turned)
    exact = phase.double() - (torch.pi / 2 if turned else 0.0)
    assert (cos - exact.cos()).abs().max() < error and (sin - exact.sin()).abs().max() < error


@triton.jit
def round_off(x, out, SIZE: tl.constexpr):
    tl.store(out + tl.arange(0, SIZE), triton_kernels.to_tf32(tl.load(x + tl.arange(0, SIZE)), False))


def test_rounding_to_tf32():
    """To the nearest of 10 bits after the first; whatever kind of NaN stays one."""
    x = torch.cat([torch.randn(12), torch.tensor([1 + 2**-11, 1 + 2**-12, -1 - 3 * 2**-11, torch.inf])])
    x = torch.cat([x, torch.tensor([0x7FFFFFFF, -1, 0x7FC00000, 0], dtype=torch.int32).view(torch.float32), x[:12]])
    out = torch.empty_like(x)
    round_off[(1,)](x, out, SIZE=32)
    assert ((out - x).abs()[:12] <= 2**-11 * x.abs()[:12]).all() and (out[:12] != x[:12]).any()
    assert out[12:16].tolist() == [1 + 2**-10, 1.0, -1 - 2**-9, torch.inf]
    assert out[16:19].isnan().all() and out[19] == 0


@triton.jit
def round_to_bf16(x, out, SIZE: tl.constexpr):
    tl.store(out + tl.arange(0, SIZE), triton_kernels.to_bf16(tl.load(x + tl.arange(0, SIZE))))


def test_emulated_bf16_is_that_of_torch():
    x = torch.cat([torch.randn(4095), torch.tensor([torch.nan])])
    out = torch.empty_like(x)
    round_to_bf16[(1,)](x, out, SIZE=4096)
    torch.testing.assert_close(out, x.bfloat16().float(), rtol=0, atol=0, equal_nan=True)
