"""`method`: both forms are the same attention, and which one serves a graph depends on that graph alone."""

import math
import warnings

import pytest
import torch

from efa_addons import EFAConfig, EFAError, EFAWarning, EuclideanFastAttention
from efa_addons.ops import graphs
from efa_addons.ops.cost import pairwise_up_to

pytestmark = pytest.mark.usefixtures("double")


@pytest.fixture
def make(options, randomized):
    """make(method, **changes): modules of equal weights."""
    states = []

    def module(method, **changes):
        made = randomized(EuclideanFastAttention(**{**options, "max_length": 5.0, "method": method, **changes}))
        states.append(made.state_dict())
        made.load_state_dict(states[0])
        return made

    return module


def derivatives(module, x, structure):
    positions, batch, num_graphs = structure
    tensors = [x.clone().requires_grad_(), positions.clone().requires_grad_()]
    out = module(tensors[0], tensors[1], batch, num_graphs)
    first = torch.autograd.grad(out.square().sum(), tensors, create_graph=True)
    parameters = list(module.parameters())
    second = torch.autograd.grad(out.sum() + sum(g.square().sum() for g in first), [*tensors, *parameters])
    return [tensor.detach() for tensor in (out, *first, *second)]


@pytest.mark.parametrize(("tolerance", "bound"), [(1e-4, 1e-3), (1e-8, 1e-7)])
def test_methods_agree_within_the_tolerance(make, atoms, tolerance, bound):
    """At distances up to max_length; the sum over atoms and features collects a few errors of the kernel."""
    quadrature, pairwise = (make(method, tolerance=tolerance, max_frequency=4.0) for method in ("quadrature", "pairwise"))
    structure = atoms(9, 1, 6, diameter=5.0)
    x = torch.randn(16, *quadrature.input_shape)
    with torch.no_grad():
        out, exact = quadrature(x, *structure), pairwise(x, *structure)
    assert 0 < (out - exact).abs().max() < bound * exact.abs().max()


@pytest.mark.parametrize("sizes", [(9, 9, 9), (2, 17, 1, 0, 12, 2)], ids=str)
def test_values_and_derivatives_of_a_batch_in_any_mixture(make, atoms, sizes):
    """Frequencies trained: gradients by them, too. auto cut at these sizes takes one form, the other, or both."""
    fine = {"lebedev_num": 302, "frequencies_trainable": True}
    structure = atoms(*sizes)
    quadrature = make("quadrature", **fine)
    x = torch.randn(len(structure.batch), *quadrature.input_shape)
    expected = derivatives(quadrature, x, structure)
    for cut in (2, 12, 1000):
        module = make("auto", tolerance=1e-11, frequencies_trainable=True)
        module.pairwise_up_to = cut
        for value, reference in zip(derivatives(module, x, structure), expected, strict=True):
            assert (value - reference).abs().max() < 1e-9 * max(1.0, float(reference.abs().max()))


@pytest.mark.parametrize("max_degree_sph", [0, 1, 2, 4])
@pytest.mark.parametrize(("tolerance", "max_frequency"), [(1e-5, math.pi), (1e-3, 2.0), (1e-6, 5.0)])
def test_tolerance_is_kept_at_max_length(tolerance, max_frequency, max_degree_sph):
    """Of every component of the kernel, for pairs in 1000 directions."""
    coupled = {"tensor_integration": True, "ti_max_degree_sph": max_degree_sph, "ti_max_degree": max_degree_sph}
    options = {"parametrized": False, "include_self": False, **(coupled if max_degree_sph else {})}
    quadrature, pairwise = (
        EuclideanFastAttention(8, method=method, max_length=10.0, tolerance=tolerance, max_frequency=max_frequency, **options)
        for method in ("quadrature", "pairwise")
    )
    away = 10 * torch.nn.functional.normalize(torch.randn(1000, 3), dim=1)
    positions = torch.stack([torch.zeros_like(away), away], 1).reshape(-1, 3)
    batch = torch.arange(1000).repeat_interleave(2)
    x = torch.zeros(2000, 1, 1, 8)
    x[..., 6:] = 1  # of the highest frequency
    out, exact = (module(x, positions, batch, 1000) for module in (quadrature, pairwise))
    per_pair = 2 * quadrature.scale_qk  # of q·k
    assert (out - exact).abs().max() <= 1.001 * tolerance * per_pair


@pytest.mark.parametrize("in_order", [False, True])
@pytest.mark.parametrize("sizes", [(2, 13, 6, 0, 7, 1), (4, 6, 8)], ids=str)
def test_batch_equals_single_graphs(make, atoms, sizes, in_order):
    """Also where the mean size is that of the largest graph below the cut."""
    module = make("auto", tolerance=1e-2)
    module.pairwise_up_to = 6
    positions, batch, num_graphs = atoms(*sizes)
    batch = batch.sort().values if in_order else batch
    x = torch.randn(len(batch), *module.input_shape)
    together = module(x, positions, batch, num_graphs)
    for graph in batch.unique():
        mine = batch == graph
        assert (together[mine] - module(x[mine], positions[mine])).abs().max() < 1e-12 * together.abs().max()


@pytest.mark.parametrize("method", ["quadrature", "pairwise"])
def test_forces_are_contiguous(make, atoms, method):
    """Hosts call view on them; a single graph is laid out without a copy."""
    module = make(method)
    positions = (0.5 * torch.randn(10, 3)).requires_grad_()
    out = module(torch.randn(10, *module.input_shape), positions)
    assert torch.autograd.grad(out.sum(), positions)[0].is_contiguous()


def test_sizes_that_must_not_be_looked_at(make, atoms, monkeypatch):
    """There auto is the quadrature, and a pinned pairwise is right."""
    structure = atoms(3, 1, 5)
    modules = [make(method, tolerance=1e-2) for method in ("auto", "pairwise", "quadrature")]
    x = torch.randn(9, *modules[0].input_shape)
    by_auto, by_pairs, by_quadrature = (derivatives(module, x, structure) for module in modules)
    assert all(torch.equal(a, b) for a, b in zip(by_auto, by_pairs, strict=True))
    monkeypatch.setattr(graphs, "_static_shapes", lambda batch: True)
    for a, b in zip(derivatives(modules[0], x, structure), by_quadrature, strict=True):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-9)
    for a, b in zip(derivatives(modules[1], x, structure), by_pairs, strict=True):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("method", ["auto", "pairwise", "quadrature"])
def test_no_atoms_where_sizes_must_not_be_looked_at(make, atoms, monkeypatch, method):
    monkeypatch.setattr(graphs, "_static_shapes", lambda batch: True)
    module = make(method)
    out = module(torch.zeros(0, *module.input_shape), torch.zeros(0, 3), torch.zeros(0, dtype=torch.long), 2)
    assert out.shape == (0, *module.output_shape, module.output_type.num_features)


def test_a_grid_asked_for_is_used(make, atoms):
    structure = atoms(6)
    auto, quadrature = make("auto", lebedev_num=6), make("quadrature", lebedev_num=6)
    x = torch.randn(6, *auto.input_shape)
    assert auto.pairwise_up_to == 0
    assert torch.equal(auto(x, *structure), quadrature(x, *structure))


def test_pairs_need_no_grid(atoms):
    """Frequencies too high for any grid."""
    module = EuclideanFastAttention(2, max_length=5.0, max_frequency=1000.0, method="pairwise")
    assert module.lebedev_num is None
    assert module(torch.randn(4, 1, 1, 2), *atoms(4)).isfinite().all()


def test_warning_beyond_max_length_is_for_graphs_of_the_quadrature():
    module = EuclideanFastAttention(2, max_length=3.0)
    module.pairwise_up_to = 2
    x, positions, batch = torch.randn(5, 1, 1, 2), torch.zeros(5, 3), torch.tensor([0, 0, 1, 1, 1])
    positions[1, 0] = 4.0
    module(x, positions, batch, 2)
    positions[4, 0] = 3.5
    with pytest.warns(EFAWarning, match=r"3\.50 Å wide"):
        module(x, positions, batch, 2)


def test_no_warning_for_trained_frequencies_without_a_grid():
    module = EuclideanFastAttention(2, max_length=3.0, frequencies_trainable=True, method="pairwise")
    with torch.no_grad():
        module.frequencies.mul_(10.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module(torch.randn(2, 1, 1, 2), torch.rand(2, 3))


def test_cost_model():
    """Small molecules by pairs, large structures by the grid; a finer grid and wider features speak for pairs."""
    usual = pairwise_up_to(116, 4 * 116, 64, 8, 0)
    assert 50 < usual < 1000
    assert pairwise_up_to(400, 4 * 400, 64, 8, 0) > usual
    assert pairwise_up_to(116, 16 * 116, 64, 8, 0) > usual
    assert EuclideanFastAttention(4, max_length=5.0, method="quadrature").pairwise_up_to == 0


def test_option():
    assert EFAConfig().method == "auto"
    assert EFAConfig(method="pairwise").to_dict()["method"] == "pairwise"
    with pytest.raises(EFAError, match="unknown method 'quadratur' .did you mean 'quadrature'"):
        EFAConfig(method="quadratur")
    with pytest.raises(EFAError, match="lebedev_num=50 asks for a grid and method: pairwise uses none"):
        EFAConfig(method="pairwise", lebedev_num=50)


def test_description():
    def describe(**options):
        return EuclideanFastAttention(4, max_length=5.0, **options).describe_method()

    assert describe(lebedev_num=26) == "26 Lebedev points"
    assert describe(method="pairwise") == "pairwise"
    assert describe().startswith("pairwise up to ") and describe().endswith(" atoms, else 1 to 50 Lebedev points")
