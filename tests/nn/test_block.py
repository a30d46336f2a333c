"""EFABlock: zero at the start, the same in every layout, and each option doing what its name says."""

import copy
import dataclasses
import io
import math
import pickle

import pytest
import torch
from e3nn import o3

from efa_addons import EFABlock, EFAConfig, EFAWarning, __version__

IRREPS = ["8x0e", "16x0e+16x1o+16x2e", "8x0e+4x1o+2x1e"]
CONFIG = EFAConfig(max_length=5.0, num_features_qk=4, num_features_v=4, mlp_features=8, lebedev_num=26)
VARIANTS = {
    "default": {},
    "all degrees": {"max_degree_qk": None, "activation": "silu"},
    "tensor integration": {"tensor_integration": True, "ti_max_degree_sph": 2, "ti_parametrize_coupling_paths": True},
    "no contraction": {"contraction": False},
    "emulate": {"emulate": True},
}


@pytest.fixture(params=list(VARIANTS))
def config(request):
    return CONFIG.replace(**VARIANTS[request.param])


@pytest.mark.parametrize("irreps", IRREPS)
def test_zero_at_initialisation(irreps, config, atoms):
    block = EFABlock(irreps, irreps, config)
    x = torch.randn(7, block.pack.dim)
    assert torch.equal(block(x, *atoms(4, 3)), torch.zeros_like(x))


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(("irreps_in", "irreps_out"), [(i, i) for i in IRREPS[1:]] + [("8x0e", "4x0e+2x1o"), ("2x1o", "3x0e")])
def test_equivariant(irreps_in, irreps_out, config, atoms, randomized):
    degree_qk = config.max_degree_qk if "0e" in irreps_in else None  # q and k are of what there is
    block = randomized(EFABlock(irreps_in, irreps_out, config.replace(lebedev_num=194, max_degree_qk=degree_qk)))
    (positions, batch, num_graphs), rotation = atoms(4, 3), -o3.rand_matrix()
    x = torch.randn(7, block.pack.dim)
    turn_in, turn_out = (o3.Irreps(irreps).D_from_matrix(rotation) for irreps in (irreps_in, irreps_out))
    out = block(x, positions, batch, num_graphs)
    turned = block(x @ turn_in.T, positions @ rotation.T, batch, num_graphs)
    assert out.abs().max() > 1e-3
    assert (turned - out @ turn_out.T).abs().max() < 1e-9 * out.abs().max()


def to_ir_mul(x, irreps):
    """Flat features from e3nn's layout to (component, feature)."""
    sizes = [(mul, ir.dim) for mul, ir in o3.Irreps(irreps)]
    parts = x.split([mul * dim for mul, dim in sizes], dim=1)
    turned = [part.unflatten(1, size).transpose(1, 2).flatten(1) for part, size in zip(parts, sizes, strict=True)]
    return torch.cat(turned, dim=1)


@pytest.mark.parametrize("irreps", IRREPS[1:])
def test_layouts_agree(irreps, config, atoms, randomized):
    mul_ir = randomized(EFABlock(irreps, irreps, config))
    ir_mul = EFABlock(irreps, irreps, config, layout="ir_mul")
    ir_mul.load_state_dict(mul_ir.state_dict())
    structure, x = atoms(4, 3), torch.randn(7, mul_ir.pack.dim)
    assert not torch.equal(to_ir_mul(x, irreps), x)
    assert torch.equal(ir_mul(to_ir_mul(x, irreps), *structure), to_ir_mul(mul_ir(x, *structure), irreps))


@pytest.mark.parametrize("contraction", [True, False])
def test_contraction_lets_scalars_see_relative_orientation(contraction, atoms, randomized):
    block = randomized(EFABlock("4x0e+4x1o", "4x0e", CONFIG.replace(contraction=contraction)))
    positions, x = atoms(2).positions, torch.randn(2, 16)
    turned = x.clone()
    turned[1, 4:] = -x[1, 4:]  # vectors of the other atom
    change = (block(turned, positions) - block(x, positions))[0].abs().max()
    assert (change > 1e-4) == contraction


@pytest.mark.parametrize(
    "changes", [{}, {"tensor_integration": True, "ti_parametrize_coupling_paths": True}, {"use_bias": False}], ids=str
)
@pytest.mark.parametrize("irreps", ["64x0e", "16x0e+16x1o", "128x0e+128x1o+128x2e"])
def test_emulation_has_the_size_of_the_attention(irreps, changes):
    config = EFAConfig(max_length=5.0, **changes)
    sizes = [
        sum(p.numel() for p in EFABlock(irreps, irreps, config.replace(emulate=emulate)).attention.parameters())
        for emulate in (False, True)
    ]
    assert sizes[1] == pytest.approx(sizes[0], rel=0.1)


@pytest.mark.parametrize("emulate", [True, False])
def test_emulation_sees_one_atom_at_a_time(emulate, atoms, randomized):
    block = randomized(EFABlock("8x0e+8x1o", "8x0e+8x1o", CONFIG.replace(emulate=emulate)))
    positions, x = atoms(3).positions, torch.randn(3, 32)
    other_x, other_positions = x.clone(), positions.clone()
    other_x[2] += 1
    other_positions[2] += 0.5
    out = block(x, positions)[:2]
    assert torch.equal(block(other_x, positions)[:2], out) == emulate
    assert torch.equal(block(x, other_positions)[:2], out) == emulate


@pytest.mark.parametrize("changes", [{}, VARIANTS["tensor integration"], {"normalization": 7.0}], ids=str)
def test_isolated_atoms_stay_what_they_are(changes, randomized):
    """Without self term and biases nothing attended gives exactly zero: energies of single atoms are the host's own."""
    config = CONFIG.replace(include_self=False, use_bias=False, **changes)
    block = randomized(EFABlock("8x0e+8x1o", "8x0e+8x1o", config))
    x, positions = torch.randn(3, 32), torch.randn(3, 3)
    assert block(x, positions, torch.arange(3)).abs().max() == 0
    assert block(x, positions).abs().max() > 0


# A value other than CONFIG's for every option that a block reads.
CHANGES = {
    "max_length": 6.0, "max_frequency": 4.0, "method": "pairwise", "tolerance": 1e-9, "lebedev_num": 6,
    "frequencies_trainable": True, "parametrized": False, "num_features_qk": 6, "num_features_v": 3, "max_degree_qk": 1,
    "max_degree_v": 0, "include_pseudotensors_qk": True, "include_pseudotensors_v": True, "activation": "gelu",
    "tensor_integration": True, "ti_max_degree_sph": 2, "ti_max_degree": 0, "ti_include_pseudotensors": True,
    "ti_parametrize_coupling_paths": True, "ti_degree_scaling_constants": (2.0, 0.5), "include_self": False,
    "normalization": 2.0, "use_bias": False, "contraction": False, "mlp_features": 9, "emulate": True,
}  # fmt: skip


def test_every_option_is_listed_above():
    assert {field.name for field in dataclasses.fields(EFAConfig)} == {*CHANGES, "layers", "max_length_margin"}


@pytest.mark.parametrize("name", CHANGES)
def test_every_option_reaches_the_block(name, atoms, randomized):
    base = CONFIG.replace(
        tensor_integration=name.startswith("ti_"), lebedev_num=None if name in ("tolerance", "method") else 26
    )
    if name in ("tolerance", "method"):  # auto would take pairs for both, and a fine grid would equal them
        base = base.replace(method="quadrature", tolerance=0.1)
    structure, x = atoms(4, 3), torch.randn(7, 32)
    seen = []
    for config in (base, base.replace(**{name: CHANGES[name]})):
        torch.manual_seed(1)
        block = randomized(EFABlock("8x0e+8x1o", "8x0e+8x1o", config))
        shapes = [block.attention.output_shape, *(parameter.shape for parameter in block.parameters())]
        seen.append((shapes, block(x, *structure)))
    assert seen[0][0] != seen[1][0] or not torch.allclose(seen[0][1], seen[1][1], rtol=1e-6)


def test_survives_files_and_copies(config, atoms, randomized):
    block = randomized(EFABlock("8x0e+8x1o", "8x0e+8x1o", config))
    file = io.BytesIO()
    torch.save(block, file)
    file.seek(0)
    structure, x = atoms(4, 3), torch.randn(7, 32)
    for other in (torch.load(file, weights_only=False), copy.deepcopy(block)):
        assert torch.equal(other(x, *structure), block(x, *structure))


def test_degrees_are_capped_at_the_layer(atoms):
    block = EFABlock("4x0e", "4x0e+4x1o", CONFIG.replace(max_degree_qk=2, max_degree_v=3))
    assert block(torch.randn(7, 4), *atoms(4, 3)).shape == (7, 16)


def test_one_warning_beyond_max_length():
    block = EFABlock("4x0e", "4x0e", CONFIG)
    x, positions = torch.randn(2, 4), torch.tensor([[0.0, 0, 0], [0, 0, 4.9]])
    block(x, positions)
    with pytest.warns(EFAWarning, match=r"5\.88 Å wide, EFA was set up for max_length=5\.00 Å") as caught:
        block(x, 1.2 * positions)
        block(x, 1.2 * positions)
    assert len(caught) == 1


def test_a_given_grid_that_is_too_coarse_is_warned_of():
    """From an error of 1 % of the kernel, times the harmonics if there are any."""
    with pytest.warns(EFAWarning, match="lebedev_num=14 points are wrong by 2.1%.* max_frequency=3.14"):
        EFABlock("4x0e", "4x0e", CONFIG.replace(lebedev_num=14))
    EFABlock("4x0e", "4x0e", CONFIG.replace(lebedev_num=14, max_frequency=2.5))
    with pytest.warns(EFAWarning, match="lebedev_num=26 points are wrong"):  # harmonics ask for more
        EFABlock("4x0e", "4x0e", CONFIG.replace(tensor_integration=True, ti_max_degree_sph=4))


def test_grid_follows_from_tolerance():
    def points(**options):
        return EFABlock("4x0e", "4x0e", EFAConfig(max_length=5.0, **options)).attention.lebedev_num

    assert points() == points(tolerance=1e-6) == 50
    assert points(max_frequency=2 * math.pi) == 86
    assert points(lebedev_num=194) == 194
    assert points(tensor_integration=True, ti_max_degree_sph=4) > 50


def test_degrees_are_capped_at_what_the_layer_has():
    """A first layer has scalars only: settings made for the others must not be errors there."""
    options = {"max_degree_qk": 2, "max_degree_v": 2, "tensor_integration": True, "ti_max_degree_sph": 1, "ti_max_degree": 3}
    degrees = [EFABlock(i, "4x0e", CONFIG.replace(**options)).attention.output_type.max_degree for i in ("4x0e", "4x0e+4x1o")]
    assert degrees == [1, 2]


def test_a_pickle_of_another_version_becomes_a_block_of_this_one(atoms, randomized, double):
    """Attributes that modules have gained since are there; weights, dtype and what is trained are as they were."""
    block = randomized(EFABlock("8x0e+4x1o", "8x0e", EFAConfig(max_length=5.0, frequencies_trainable=True)))
    block.mlp[0].weight.requires_grad_(False)
    arguments = torch.randn(7, 20), *atoms(4, 3)
    expected = block(*arguments)
    block.version = "0.0.1"
    del block.attention.pairwise_up_to, block.take_shared.fills  # not yet invented then
    copied = pickle.loads(pickle.dumps(block))
    assert torch.allclose(copied(*arguments), expected, rtol=0, atol=1e-12)
    assert copied.version == __version__
    assert {name for name, p in copied.named_parameters() if not p.requires_grad} == {"mlp.0.weight"}
