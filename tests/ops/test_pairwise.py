"""The closed form against the quadrature on a grid fine enough for double precision, for every degree and layout."""

import pytest
import torch

from efa_addons.ops import graphs, pairwise
from efa_addons.ops.graphs import dense_pairs, device_pairs, graph_blocks, graph_sizes, pair_blocks
from efa_addons.ops.grid import make_grid
from efa_addons.ops.pairwise import attend_pairs, attend_pairs_harmonics
from efa_addons.ops.quadrature import attend

pytestmark = pytest.mark.usefixtures("double")

FREQUENCIES = (0.0, 0.7, 1.9)
SIZES = [(5,), (1,), (4, 4, 4), (3, 1, 4), (0, 2, 0, 3), (1, 1, 1, 12, 1, 1), (0, 0), (2, 30, 5, 31, 2)]
LAYOUTS = {
    "by size": lambda atoms: pair_blocks(atoms.batch, graph_sizes(atoms.batch, atoms.num_graphs), 100),
    "of a device": lambda atoms: device_pairs(atoms.batch, atoms.num_graphs),
    "of a device, in TorchScript": lambda atoms: torch.jit.script(device_pairs)(atoms.batch, atoms.num_graphs),
    "dense": lambda atoms: dense_pairs(atoms.batch),
}


def arguments(atoms):
    """q, k (N, 4, 6), v (N, 3, 2), positions and frequencies, all to be differentiated."""
    num_atoms = len(atoms.batch)
    tensors = [torch.randn(num_atoms, 4, 6), torch.randn(num_atoms, 4, 6), torch.randn(num_atoms, 3, 2), atoms.positions]
    return [tensor.requires_grad_() for tensor in (*tensors, torch.tensor(FREQUENCIES))]


def derivatives(out, tensors):
    """The output, its gradients, and gradients of these."""
    first = torch.autograd.grad((out * (1 + out)).sum(), tensors, create_graph=True)
    second = torch.autograd.grad(sum((g * (1 + g)).sum() for g in first), tensors)
    return [tensor.detach() for tensor in (out, *first, *second)]


def assert_equal(results, expected, bound=1e-12):
    for value, reference in zip(results, expected, strict=True):
        assert value.shape == reference.shape
        if value.numel() > 0:
            assert (value - reference).abs().max() <= bound * max(1.0, float(reference.abs().max()))


def by_grid(tensors, structure, lebedev_num, constants):
    grid = make_grid([(lebedev_num, len(tensors[4]))], constants)
    return attend(*tensors, grid, graph_blocks(structure.batch, structure.num_graphs))


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=list(LAYOUTS))
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_is_the_limit_of_the_quadrature(atoms, sizes, layout):
    structure = atoms(*sizes)
    tensors = arguments(structure)
    grid = by_grid(tensors, structure, 434, [1.0])[:, 0]
    pairs = attend_pairs(*tensors, layout(structure))
    assert_equal(derivatives(pairs, tensors), derivatives(grid, tensors))


@pytest.mark.parametrize("max_degree", [1, 2, 5])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=list(LAYOUTS))
@pytest.mark.parametrize("sizes", [(1, 5, 0, 3), (3, 3)], ids=str)
def test_harmonics(atoms, sizes, layout, max_degree):
    structure = atoms(*sizes)
    tensors = arguments(structure)
    constants = [1.0, -0.5, 2.0, 0.7, 1.5, 1.0][: max_degree + 1]
    grid = by_grid(tensors, structure, 974, constants)
    pairs = attend_pairs_harmonics(*tensors, constants, layout(structure))
    assert pairs[:, max_degree**2 :].abs().max() > 1e-3
    assert_equal(derivatives(pairs, tensors), derivatives(grid, tensors))


@pytest.mark.parametrize("max_degree", [0, 2])
@pytest.mark.parametrize("form", ["parts", "nothing kept", "traceable"])
def test_how_it_is_computed_does_not_matter(atoms, form, max_degree, monkeypatch):
    """In parts of few rows or blocks, computed again for derivatives, and as TorchScript and the compiler see it."""
    structure = atoms(7, 2, 9)
    tensors, constants = arguments(structure), [1.0] * (max_degree + 1)
    layout = LAYOUTS["by size"](structure)
    usual = derivatives(attend_pairs_harmonics(*tensors, constants, layout), tensors)
    if form == "traceable":
        monkeypatch.setattr(pairwise, "_weights", pairwise._traceable_weights)
    else:
        monkeypatch.setattr(pairwise, "_PART", 100)
        monkeypatch.setattr(pairwise, "_KEEP", 0 if form == "nothing kept" else 10**6)
    assert_equal(derivatives(attend_pairs_harmonics(*tensors, constants, layout), tensors), usual)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=list(LAYOUTS))
def test_without_self(atoms, layout):
    structure = atoms(3, 1, 2)
    tensors = arguments(structure)
    q, k, v = tensors[:3]
    with_self, without = (attend_pairs(*tensors, layout(structure), include_self) for include_self in (True, False))
    own = (q * k).sum([1, 2])[:, None, None] * v
    assert_equal([(without + own).detach()], [with_self.detach()])
    alone = structure.batch == 1
    assert without[alone].abs().max() == 0


def test_third_derivatives(atoms):
    """Differences of second derivatives along a random direction."""
    structure = atoms(3)
    q, k, v, positions, frequencies = arguments(structure)
    layout = LAYOUTS["by size"](structure)

    def curvature(points, graph):
        out = attend_pairs(q, k, v, points, frequencies, layout).square().sum()
        (first,) = torch.autograd.grad(out, points, create_graph=True)
        return torch.autograd.grad(first.square().sum(), points, create_graph=graph)[0]

    direction = torch.randn(3, 3)
    (third,) = torch.autograd.grad((curvature(positions, True) * direction).sum(), positions)
    step = 1e-5
    for axis in range(3):
        shift = torch.zeros(3, 3)
        shift[1, axis] = step
        ends = [curvature((positions + sign * shift).detach().requires_grad_(), False) for sign in (1, -1)]
        numeric = ((ends[0] - ends[1]) * direction).sum() / (2 * step)
        assert abs(third[1, axis] - numeric) < 1e-6 * third.abs().max()


@pytest.mark.parametrize("length", [4.0, 12.0, 40.0])
def test_single_precision(atoms, length):
    """Stated error: 1e-5 of the largest value, at phases of up to 2 radians per Å times the distance."""
    structure = atoms(20, 15, diameter=length)
    tensors = [tensor.detach() for tensor in arguments(structure)]
    layout = LAYOUTS["by size"](structure)
    exact = attend_pairs_harmonics(*tensors, [1.0, 1.0], layout)
    rounded = attend_pairs_harmonics(*(tensor.float() for tensor in tensors), [1.0, 1.0], layout)
    assert rounded.dtype == torch.float32
    assert (rounded - exact).abs().max() < 1e-5 * exact.abs().max()


class TestLayout:
    @pytest.mark.parametrize("sizes", [*SIZES, (7,) * 5, (3, 90, 4, 85, 0, 1, 40), (2, 4, 6)], ids=str)
    @pytest.mark.parametrize("largest", [4, 100])
    @pytest.mark.parametrize("in_order", [False, True])
    def test_every_small_graph_once_in_a_block_of_its_own(self, atoms, sizes, largest, in_order):
        batch = atoms(*sizes).batch
        batch = batch.sort().values if in_order else batch
        layout = pair_blocks(batch, list(sizes), largest)
        found = torch.cat([blocks.atoms for blocks in layout]) if layout else torch.zeros(0, dtype=torch.long)
        small = torch.tensor([size <= largest for size in sizes])[batch]
        assert torch.equal(found.sort().values, small.nonzero()[:, 0])
        for blocks in layout:
            assert len(blocks.slot.unique()) == len(blocks.slot)
            block = blocks.slot // blocks.block_size
            for number in range(blocks.num_blocks if len(blocks.atoms) else 0):
                assert len(batch[blocks.atoms][block == number].unique()) == 1

    def test_sizes_alike_share_a_layout_and_others_do_not(self, atoms):
        layout = pair_blocks(atoms(20, 19, 300, 21, 2, 298).batch, [20, 19, 300, 21, 2, 298], 1000)
        assert [blocks.block_size for blocks in layout] == [300, 21]
        slots = sum(blocks.num_blocks * blocks.block_size**2 for blocks in layout)
        assert slots <= sum(n**2 for n in (20, 19, 300, 21, 2, 298)) + 2 * 4000

    def test_of_a_device_by_sizes_where_they_can_be_seen(self, atoms, monkeypatch):
        """Which is asked once; one graph is known without."""
        looks = []
        monkeypatch.setattr(torch.Tensor, "cpu", lambda batch: looks.append(batch) or batch)
        batch = atoms(3, 1, 3).batch
        assert [blocks.block_size for blocks in device_pairs(batch, 3)] == [3] and len(looks) == 1
        (blocks,) = device_pairs(atoms(5).batch, 1)
        assert blocks.in_order and blocks.same is None and len(looks) == 1
        monkeypatch.setattr(graphs, "_can_be_seen", lambda batch: False)
        (blocks,) = device_pairs(batch, 3)
        assert blocks.same.shape == (7, 7) and len(looks) == 1
        assert device_pairs(atoms(5).batch, 1)[0].same is None

    @pytest.mark.parametrize("hide", [torch.func.functionalize, lambda run: lambda x: torch.func.vmap(run)(x[None])])
    def test_what_cannot_be_seen(self, hide):
        batch = torch.tensor([0, 0, 1])
        assert graphs._can_be_seen(batch) and not graphs._can_be_seen(batch.to("meta"))
        seen = []
        hide(lambda x: seen.append(graphs._can_be_seen(batch)) or x)(torch.zeros(2))
        assert seen == [False]

    def test_equal_sizes_in_order_are_a_view(self):
        batch = torch.arange(3).repeat_interleave(4)
        x = torch.randn(12, 2)
        (blocks,) = pair_blocks(batch, [4, 4, 4], 10)
        assert blocks.in_order and graphs.to_pair_blocks(x, blocks).data_ptr() == x.data_ptr()
        (blocks,) = pair_blocks(batch.flip(0), [4, 4, 4], 10)
        assert not blocks.in_order
