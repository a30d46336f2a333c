"""Kernels of bare attentions, put forward as a host's layers: sums against brute force, file and picture."""

import csv
from itertools import permutations
from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("ase")

from ase import Atoms
from ase.build import molecule

from efa_addons import EFAError, EuclideanFastAttention
from efa_addons.cli import main
from efa_addons.dtype import default_dtype
from efa_addons.hosts.base import Attended
from efa_addons.nn.kernels import pair_kernels
from efa_addons.studies import kernels

STRUCTURES = [molecule("CH3OH"), molecule("H2O"), Atoms("C"), molecule("HCOOH")]
CUTOFF = 1.5


@pytest.fixture(autouse=True)
def single_precision():
    """Hosts change torch's default, and tests before these have used one."""
    with default_dtype(torch.float32):
        yield


class Host:
    """A host of which every layer is an attention on features made of elements; a layer may serve several steps."""

    def __init__(self, steps=1, **options):
        torch.manual_seed(0)
        options = {"max_length": 5.0, "num_features_qk": 6, "frequencies_trainable": True, **options}
        self.layers = {"layer0": EuclideanFastAttention(4, **options), "layer2": EuclideanFastAttention(4, **options)}
        self.steps = steps

    def has_efa(self, model):
        return True

    def efa_config(self, model):
        return SimpleNamespace(emulate=False)

    def cutoff_of(self, model):
        return CUTOFF

    def attended(self, model, structures):
        (atoms,) = structures
        x = torch.tensor([[[[np.sin(number * (f + 1)) for f in range(4)]]] for number in atoms.numbers], dtype=torch.float32)
        call = [torch.as_tensor(atoms.positions, dtype=torch.float32), torch.zeros(len(atoms), dtype=torch.long)]
        return {
            name: [Attended(attention, x * (1 + step), *call) for step in range(self.steps)]
            for name, attention in self.layers.items()
        }


def look(host, **options):
    return kernels.effective_kernels(host, torch.nn.Identity(), STRUCTURES, **options)


@pytest.mark.parametrize("options", [{}, {"tensor_integration": True, "ti_max_degree_sph": 1}], ids=["scalars", "degree 1"])
def test_moments_are_those_of_all_pairs(options):
    host = Host(**options)
    layers = look(host, num_bins=7)
    degrees = [0, 1] if options else [0]
    assert [(layer.layer, layer.degree) for layer in layers] == [(name, l_y) for name in host.layers for l_y in degrees]
    for layer in layers:
        found = []
        for atoms in STRUCTURES:
            attention, *given = host.attended(None, [atoms])[layer.layer][0]
            pairs = pair_kernels(attention, *given)
            for i, j in permutations(range(len(atoms)), 2):
                name = f"{atoms[i].symbol}←{atoms[j].symbol}"
                place = min(6, int(atoms.get_distance(i, j) / layer.edges[1]))
                found.append((name, place, pairs.weights[layer.degree, i, j], pairs.couplings[layer.degree, :, i, j]))
        for pair in [*layer.pairs, "all"]:
            mine = [entry for entry in found if pair in ("all", entry[0])]
            couplings = np.array([entry[3] for entry in mine])
            assert layer.couplings[pair].mean == pytest.approx(couplings.mean(0), abs=1e-12)
            assert layer.couplings[pair].std == pytest.approx(couplings.std(0), abs=1e-6)
            for place in range(7):
                weights = np.array([entry[2] for entry in mine if entry[1] == place])
                assert layer.weights[pair].number[place] == len(weights)
                if len(weights):
                    assert layer.weights[pair].mean[place] == pytest.approx(weights.mean(), abs=1e-12)
                    assert layer.weights[pair].std[place] == pytest.approx(weights.std(), abs=1e-6)
            assert layer.parts[pair].mean.sum(0) == pytest.approx(layer.weights[pair].mean, abs=1e-10, nan_ok=True)
        assert list(layer.own) == (["C", "H", "O"] if layer.degree == 0 else [])
    assert {pair: int(moments.number[0]) for pair, moments in layers[0].own.items()} == {"C": 3, "H": 8, "O": 4}


def test_a_layer_of_several_steps_is_shown_step_by_step():
    layers = look(Host(steps=2, use_bias=False))
    assert [layer.layer for layer in layers] == ["layer0 step 0", "layer0 step 1", "layer2 step 0", "layer2 step 1"]
    first, second = (layer.couplings["all"].mean for layer in layers[:2])
    assert second == pytest.approx(4 * first, rel=1e-5)  # twice the features in q and in k


def test_file_and_picture(tmp_path):
    """Nine pairs of elements, of which the picture shows four."""
    layers = look(Host(tensor_integration=True, ti_max_degree_sph=1))
    kernels.plot(tmp_path / "it.png", layers)
    assert (tmp_path / "it.png").read_bytes().startswith(b"\x89PNG")
    kernels.write_csv(tmp_path / "it.csv", layers)
    with (tmp_path / "it.csv").open() as file:
        rows = list(csv.DictReader(file))
    layer = layers[2]
    mine = [row for row in rows if (row["layer"], row["degree"]) == ("layer2", "0")]
    weights = {(row["atoms"], row["from"]): row for row in mine if row["quantity"] == "weight"}
    for place, (edge, number) in enumerate(zip(layer.edges[:-1], layer.weights["H←O"].number, strict=True)):
        row = weights.get(("H←O", f"{edge:.6g}"))
        assert (row is None) == (number == 0)
        if row is not None:
            assert int(row["number"]) == number
            assert float(row["mean"]) == pytest.approx(layer.weights["H←O"].mean[place], rel=1e-5)
    couplings = [float(row["mean"]) for row in mine if (row["quantity"], row["atoms"]) == ("coupling", "C←H")]
    assert couplings == pytest.approx(layer.couplings["C←H"].mean, rel=1e-5)
    parts = [row for row in mine if (row["quantity"], row["atoms"]) == ("weight of one frequency", "C←H")]
    assert len(parts) == 3 * (layer.weights["C←H"].number > 0).sum()
    assert len([row for row in mine if row["quantity"] == "own weight"]) == 3


def test_the_share_beyond_the_cutoff():
    """Of weights that are all alike: the share of pairs."""
    host = Host()
    with torch.no_grad():
        for attention in host.layers.values():
            attention.frequencies.zero_()
            for parameter in (attention.q.weight, attention.k.weight):
                parameter.zero_()
            attention.q.bias.fill_(1.0)
            attention.k.bias.fill_(1.0)
    (layer, _) = look(host)
    distances = [atoms.get_distance(i, j) for atoms in STRUCTURES for i, j in permutations(range(len(atoms)), 2)]
    low = layer.edges[np.searchsorted(layer.edges, CUTOFF)]  # the first bin that is all beyond
    assert layer.weights["all"].std[layer.weights["all"].number > 0].max() == 0
    assert f"{np.mean(np.array(distances) >= low):.0%} of the squared weights" in kernels.describe(layer)


def test_a_picture_has_a_name_of_a_picture(tmp_path, capsys):
    with pytest.raises(EFAError, match=r"kernels.csv is to be a picture.*\.png"):
        kernels.check_name(tmp_path / "kernels.csv")
    assert main(["kernels", "model", "--data", "data.xyz", "--out", "kernels"]) == 2
    assert "must end in" in capsys.readouterr().err
