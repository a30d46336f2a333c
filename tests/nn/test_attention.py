"""EuclideanFastAttention: what must not matter (order, batching, layout, origin) and what options must do."""

import pytest
import torch

from efa_addons import EFAWarning, EuclideanFastAttention
from efa_addons.ops import graphs
from efa_addons.ops.graphs import graph_blocks

SIZES = [(6,), (4, 0, 1, 3), (0, 0, 5), (1, 1, 1), (2, 2, 2, 2, 2, 17), (23, 1, 0, 1, 2)]


@pytest.fixture
def make(options, randomized):
    """make(**changes): the module of one kind with random parameters,."""
    return lambda **changes: randomized(EuclideanFastAttention(**{**options, "max_length": 5.0, "lebedev_num": 26, **changes}))


def random_inputs(module, num_atoms):
    return torch.randn(num_atoms, *module.input_shape)


def difference(a, b):
    """Largest difference relative to the largest value."""
    return ((a - b).abs().max() / b.abs().max()).item()


@pytest.mark.usefixtures("double")
class TestInvariances:
    @pytest.mark.parametrize("sizes", SIZES, ids=str)
    def test_batch_equals_single_graphs(self, make, atoms, sizes):
        module, (positions, batch, num_graphs) = make(), atoms(*sizes)
        x = random_inputs(module, len(batch))
        together = module(x, positions, batch, num_graphs)
        assert together.shape[1:] == (*module.output_shape, module.output_type.num_features)
        for graph in batch.unique():
            mine = batch == graph
            assert (together[mine] - module(x[mine], positions[mine])).abs().max() < 1e-11

    @pytest.mark.parametrize("sizes", [(4, 0, 1, 3), (2, 2, 2, 2, 2, 17)], ids=str)
    def test_order_of_atoms(self, make, atoms, sizes):
        module, (positions, batch, num_graphs) = make(), atoms(*sizes)
        x, order = random_inputs(module, len(batch)), torch.randperm(len(batch))
        out = module(x, positions, batch, num_graphs)
        assert difference(module(x[order], positions[order], batch[order], num_graphs), out[order]) < 1e-12

    @pytest.mark.parametrize("sizes", [*SIZES, (0, 0), (9,) * 7 + (40,)], ids=str)
    def test_layout_in_blocks(self, make, atoms, sizes, monkeypatch):
        """Outputs and gradients of the layout that accelerators and compilers use equal those of the exact one."""
        module, (positions, batch, num_graphs) = make(), atoms(*sizes)
        x = random_inputs(module, len(batch)).requires_grad_()
        positions.requires_grad_()
        results = []
        for static in (False, True):
            monkeypatch.setattr(graphs, "_static_shapes", lambda batch, static=static: static)
            out = module(x, positions, batch, num_graphs)
            results.append([out, *torch.autograd.grad(out.square().sum(), [x, positions])])
        for exact, static in zip(*results, strict=True):
            assert torch.allclose(exact, static, rtol=1e-10, atol=1e-10)

    def test_sizes_above_include_graphs_of_several_blocks(self, atoms):
        batch, num_graphs = atoms(*SIZES[-1])[1:]
        assert graph_blocks(batch, num_graphs).num_blocks > num_graphs

    def test_origin(self, make, atoms):
        module, (positions, batch, num_graphs) = make(), atoms(4, 1, 3)
        x, shift = random_inputs(module, 8), torch.tensor([10.0, -10.0, 10.0])
        out = module(x, positions, batch, num_graphs)
        assert difference(module(x, positions + shift, batch, num_graphs), out) < 1e-10
        apart = positions + batch[:, None] * shift
        assert difference(module(x, apart, batch, num_graphs), out) < 1e-10


def test_distant_origin_in_single_precision(make, atoms):
    """Positions in double precision are centred before they are rounded, so a metre (1e10 Å) away is as good as here."""
    module, (positions, batch, num_graphs) = make(), atoms(4, 1, 3)
    x = random_inputs(module, 8)
    out = module(x, positions, batch, num_graphs)
    assert out.dtype == torch.float32
    assert difference(module(x, positions.double() + 1e10, batch, num_graphs), out) < 1e-4
    assert difference(module(x, positions + 1000.0, batch, num_graphs), out) < 3e-3


@pytest.mark.usefixtures("double")
class TestOptions:
    def test_number_of_graphs_is_optional(self, make, atoms):
        module, (positions, batch, num_graphs) = make(), atoms(3, 2, 4)
        x = random_inputs(module, 9)
        out = module(x, positions, batch, num_graphs)
        assert torch.equal(module(x, positions, batch), out)
        assert difference(module(x, positions, batch, num_graphs + 2), out) < 1e-12

    def test_no_atoms(self, make):
        module = make()
        nothing = torch.zeros(0, 3), torch.zeros(0, dtype=torch.long)
        for arguments in (nothing[:1], nothing, (*nothing, 3)):
            assert len(module(random_inputs(module, 0), *arguments)) == 0

    def test_normalization_divides(self, make, atoms):
        one, four = make(), make(normalization=4.0)
        four.load_state_dict(dict(one.state_dict()))  # without what tells of other settings
        (positions, batch, num_graphs), x = atoms(3, 2), random_inputs(one, 5)
        assert difference(4 * four(x, positions, batch, num_graphs), one(x, positions, batch, num_graphs)) < 1e-12

    def test_without_self_an_atom_sees_only_others(self, make, atoms):
        """A pair without the self term is the pair with it minus each atom alone."""
        with_self, without = make(include_self=True), make(include_self=False)
        without.load_state_dict(dict(with_self.state_dict()))
        positions, x = atoms(2).positions, random_inputs(without, 2)
        alone = with_self(x, positions, torch.arange(2))
        assert difference(without(x, positions), with_self(x, positions) - alone) < 1e-10
        assert without(x, positions, torch.arange(2)).abs().max() == 0

    def test_state_holds_parameters_alone(self, make):
        """Grid, frequencies and coupling tables follow from the options."""
        module = make()
        assert set(module.state_dict()) == {name for name, _ in module.named_parameters()}


class TestWarnings:
    def test_one_warning_beyond_max_length(self):
        module = EuclideanFastAttention(4, max_length=3.0, lebedev_num=26)
        x, pair = torch.randn(2, 1, 1, 4), torch.tensor([[0.0, 0, 0], [0, 0, 4.0]])
        module(x, pair, torch.tensor([0, 1]))
        module(x, 0.7 * pair)
        with pytest.warns(EFAWarning, match=r"4\.00 Å wide, EFA was set up for max_length=3\.00 Å") as caught:
            module(x, pair)
            module(x, pair)
        assert len(caught) == 1

    def test_width_is_the_largest_distance_and_not_twice_the_radius(self):
        """An equilateral triangle of side 2.9 Å has a circle of 3.35 Å around it."""
        triangle = 2.9 / 3**0.5 * torch.tensor([[1.0, 0, 0], [-0.5, 0.75**0.5, 0], [-0.5, -(0.75**0.5), 0]])
        EuclideanFastAttention(4, max_length=3.0, lebedev_num=26)(torch.randn(3, 1, 1, 4), triangle)

    @pytest.mark.parametrize("tensor_integration", [False, True])
    def test_one_warning_when_trained_frequencies_outgrow_the_grid(self, tensor_integration):
        options = {"tensor_integration": True, "ti_max_degree_sph": 3, "ti_max_degree": 0} if tensor_integration else {}
        module = EuclideanFastAttention(4, max_length=3.0, method="quadrature", frequencies_trainable=True, **options)
        x, positions = torch.randn(2, 1, 1, 4), torch.randn(2, 3) / 3
        module(x, positions)
        with torch.no_grad():
            module.frequencies.mul_(2.0)
        with pytest.warns(EFAWarning, match=r"frequencies reach a phase of 6\.28 .* Lebedev grid of") as caught:
            module(x, positions)
            module(x, positions)
        assert len(caught) == 1
