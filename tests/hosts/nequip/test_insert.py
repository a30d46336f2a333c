"""EFA in NequIP: what is the host's own, the sequential form above all, beside the contract of all hosts (tests/contract)."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ase import Atoms
from nequip.data import AtomicDataDict
from nequip_support import EFA, SMALL, batch_of, evaluate, randomize, stock, with_efa
from omegaconf import OmegaConf
from scipy.spatial.transform import Rotation

from efa_addons import EFAConfig, EFAError, EFAWarning, __version__
from efa_addons.hosts.nequip import (
    EFAContributions,
    EFADataStatisticsManager,
    EFAParamGroups,
    InsertEFA,
    NequIPEFAModel,
    StripEFA,
    callbacks,
    contributions,
    describe,
    efa_config,
    efa_parameters,
    has_efa,
    insert_efa,
    inspect,
    strip_efa,
    without_efa,
)
from efa_addons.hosts.nequip.layer import EFALayer, refuse_what_efa_cannot_serve

FULL = {"max_degree_qk": None, "tensor_integration": True, "ti_parametrize_coupling_paths": True, "activation": "gelu"}


@pytest.fixture
def in_a_box(ethanol):
    """With a cell, so that there is a stress, and no periodicity."""
    ethanol.set_cell(3 * np.eye(3) * 10)
    return ethanol


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_sequential_insertion_changes_nothing(in_a_box, dtype):
    model = stock(model_dtype=dtype)
    before = evaluate(model, in_a_box, in_a_box)
    inserted = insert_efa(model, EFAConfig(**EFA), seed=1, mode="sequential")
    after = evaluate(inserted, in_a_box, in_a_box)
    for quantity in ("total_energy", "forces", "virial", "stress"):
        assert torch.equal(before[quantity], after[quantity]), quantity
    changed = evaluate(randomize(inserted), in_a_box, in_a_box)
    assert (changed["total_energy"] - before["total_energy"]).abs().min() > 1e-3


def test_a_fresh_model_is_the_stock_one_until_trained(ethanol):
    assert torch.equal(evaluate(stock(), ethanol)["total_energy"], evaluate(with_efa(), ethanol)["total_energy"])
    assert efa_config(with_efa()) == EFAConfig(**EFA)
    first, again = (efa_parameters(with_efa(seed=3)) for _ in range(2))
    assert first and all(torch.equal(p, again[name]) for name, p in first.items())
    assert any(not torch.equal(p, first[name]) for name, p in efa_parameters(with_efa(seed=4)).items())


def test_weights_of_the_other_form_are_refused():
    """Where a layer's input and output have the same irreps no shape tells the forms apart."""
    options = {"num_layers": 3, "parity": False}
    parallel, sequential = (with_efa({"layers": [1]}, mode, **options) for mode in ("parallel", "sequential"))
    with pytest.raises(EFAError, match="other settings: mode: sequential .the weights: parallel."):
        sequential.load_state_dict(parallel.state_dict())
    sequential.load_state_dict(dict(parallel.state_dict()))


@pytest.mark.parametrize("efa", [{}, FULL], ids=["default", "full"])
def test_sequential_forces_and_virial_are_derivatives(in_a_box, efa):
    model = randomize(with_efa(efa, "sequential"))
    out = evaluate(model, in_a_box)
    step = 1e-4
    for atom, axis in ((0, 0), (4, 1), (8, 2)):
        energies = []
        for sign in (1, -1):
            moved = in_a_box.copy()
            moved.positions[atom, axis] += sign * step
            energies.append(evaluate(model, moved)["total_energy"].item())
        assert out["forces"][atom, axis].item() == pytest.approx(-(energies[0] - energies[1]) / (2 * step), abs=1e-6)
    for i, j in ((0, 0), (0, 1), (2, 1)):
        energies = []
        for sign in (1, -1):
            strain = np.zeros((3, 3))
            strain[i, j] += sign * step / 2
            strain[j, i] += sign * step / 2
            strained = in_a_box.copy()
            strained.set_cell(in_a_box.cell @ (np.eye(3) + strain), scale_atoms=False)
            strained.positions = in_a_box.positions @ (np.eye(3) + strain)
            energies.append(evaluate(model, strained)["total_energy"].item())
        slope = (energies[0] - energies[1]) / (2 * step)
        assert -out["virial"][0, i, j].item() == pytest.approx(slope, abs=1e-6)


@pytest.mark.parametrize("improper", [False, True])
@pytest.mark.parametrize(
    "mode, options",
    [("sequential", {}), ("parallel", {"parity": False, "l_max": 2, "num_features": [6, 4, 2]})],
    ids=["sequential", "no parity"],
)
def test_rotations_reflections_translations_and_order(ethanol, improper, mode, options):
    """Also of layers with several degrees in unequal multiplicities."""
    model = randomize(with_efa(FULL, mode, **options), 0.1)
    out = evaluate(model, ethanol)
    matrix = (-1 if improper else 1) * Rotation.random(random_state=1).as_matrix()
    order = np.random.default_rng(0).permutation(len(ethanol))
    moved = ethanol.copy()[order]
    moved.positions = moved.positions @ matrix.T + [100.0, -50.0, 3.0]
    turned = evaluate(model, moved)
    assert torch.allclose(turned["total_energy"], out["total_energy"], rtol=0, atol=1e-4)  # the grid's tolerance
    expected = out["forces"][order] @ torch.tensor(matrix.T)
    assert torch.allclose(turned["forces"], expected, rtol=0, atol=1e-4)


def test_translation_by_1000_angstrom_in_single_precision(ethanol):
    model = randomize(with_efa(model_dtype="float32"))
    moved = ethanol.copy()
    moved.positions += [1000.0, -1000.0, 1000.0]
    here, there = evaluate(model, ethanol), evaluate(model, moved)
    assert there["total_energy"].item() == pytest.approx(here["total_energy"].item(), rel=2e-7, abs=1e-6)
    assert torch.allclose(here["forces"], there["forces"], rtol=0, atol=1e-5)


def test_a_single_structure_may_come_without_batch(ethanol):
    """As from the callers of compiled models."""
    model = randomize(with_efa())
    data = batch_of(ethanol)
    alone = {key: value for key, value in data.items() if key not in (AtomicDataDict.BATCH_KEY, AtomicDataDict.NUM_NODES_KEY)}
    expected = model(data)["total_energy"].squeeze()
    assert torch.allclose(model(alone)["total_energy"].squeeze(), expected, rtol=0, atol=1e-10)


def test_ions_beyond_every_cutoff_interact():
    """Three layers of 2 Å each, ions 7 to 12 Å apart. Without biases the sequential form cannot see: a lonely atom's local
    output is zero."""

    def distinct(mode: str, use_bias: bool) -> int:
        model = randomize(with_efa({"max_length": 20.0, "use_bias": use_bias}, mode))
        pairs = [Atoms("HO", [[0, 0, 0], [0, 0, d]]) for d in (7.0, 9.0, 12.0)]
        return len({round(evaluate(model, pair)["total_energy"].item(), 6) for pair in pairs})

    assert distinct("parallel", True) == distinct("parallel", False) == 3
    assert distinct("sequential", False) == 1


def test_an_isolated_atom_keeps_its_reference_energy():
    model = randomize(with_efa({"include_self": False, "use_bias": False}))
    for symbol, energy in SMALL["per_type_energy_shifts"].items():
        assert evaluate(model, Atoms(symbol, [[1.0, 2.0, 3.0]]))["total_energy"].item() == energy


def test_sequential_switching_off_and_stripping(ethanol):
    model, expected = randomize(with_efa(mode="sequential")), evaluate(stock(), ethanol)["total_energy"]
    with without_efa(model):
        assert torch.equal(evaluate(model, ethanol)["total_energy"], expected)
    assert not torch.equal(evaluate(model, ethanol)["total_energy"], expected)
    assert torch.equal(evaluate(strip_efa(model), ethanol)["total_energy"], expected)


def test_measuring(ethanol):
    model = randomize(with_efa())
    sizes = contributions(model, batch_of(ethanol))
    assert list(sizes) == ["layer0", "layer1", "layer2"] and all(a > 0 and b > 0 for a, b in sizes.values())
    with pytest.raises(EFAError, match="no EFA"):
        contributions(stock(), {})


def test_types_that_are_no_chemical_symbols():
    names = {"type_names": ["H1", "O2"], "per_type_energy_shifts": {"H1": -1.0, "O2": -2.0}}
    text = inspect(randomize(NequIPEFAModel(efa=EFA, **{**SMALL, **names})))
    assert "types H1, O2" in text and "norms: mean over the atoms of a small cluster" in text


@pytest.mark.parametrize(
    ("every", "frequency", "logged"), [(1, 1, [0, 1, 2, 3, 4, 5]), (1, 2, [0, 2, 4]), (2, 2, [1, 3, 5]), (2, 3, [1, 5])]
)
def test_contributions_are_logged_in_some_epochs(monkeypatch, every, frequency, logged):
    """Also where validation is not in every epoch; and a batch without neighbors has no ratio, but is no error."""
    monkeypatch.setattr(callbacks, "contributions", lambda model, batch: {"layer0": (1.0, 0.0), "layer1": (1.0, 2.0)})
    callback, found, model = EFAContributions(frequency), [], with_efa()
    for epoch in range(every - 1, 6, every):
        trainer = SimpleNamespace(sanity_checking=False, current_epoch=epoch)
        module = SimpleNamespace(model=model, log=lambda name, value, epoch=epoch, **_: found.append((epoch, name, value)))
        for batch in (0, 1):
            callback.on_validation_batch_end(trainer, module, None, {}, batch)
    assert [epoch for epoch, name, _ in found if name == "efa_contribution/layer0"] == logged
    assert all(math.isnan(value) if name.endswith("0") else value == 0.5 for _, name, value in found)


def test_targets_of_configurations():
    target = {"_target_": "nequip.model.NequIPGNNModel", **SMALL}
    inserted = InsertEFA(model=target, efa={**EFA, "layers": [1]}, freeze_base=True)
    new = efa_parameters(inserted)
    assert new and all("layer1" in name for name in new)
    assert {name for name, p in inserted.named_parameters() if p.requires_grad} == set(new)
    stripped = StripEFA(model={"_target_": "efa_addons.hosts.nequip.InsertEFA", "model": target, "efa": EFA})
    assert not has_efa(stripped)
    kept = {"model": {"_target_": "efa_addons.hosts.nequip.InsertEFA", "model": target, "efa": EFA}}
    assert efa_config(InsertEFA(**kept)) == efa_config(InsertEFA(**kept, efa=EFA)) == EFAConfig(**EFA)
    for changes, message in (
        ({"efa": {"max_length": 3.0}}, "other settings: max_length: 3.0"),
        ({"mode": "sequential"}, "in mode parallel, and mode is sequential"),
        ({"efa": False}, "efa must be null, by which a model keeps its EFA, or a mapping of its settings, got False"),
        ({"efa": 3}, "efa must be null, .* got 3"),
    ):
        with pytest.raises(EFAError, match=message):
            InsertEFA(**kept, **changes)
    groups = EFAParamGroups(with_efa(), efa={"lr": 0.1}, base={"lr": 0.2})
    assert [group["lr"] for group in groups] == [0.1, 0.2]
    assert sum(len(group["params"]) for group in groups) == len(list(with_efa().parameters()))
    assert len(EFAParamGroups(inserted)) == 1  # the frozen base needs no group


def test_several_models_in_one(ethanol):
    both = insert_efa(torch.nn.ModuleDict({"a": stock(), "b": stock(seed=5)}), EFAConfig(**EFA), seed=1)
    randomize(both)
    assert len(efa_parameters(both)) == 2 * len(efa_parameters(both["a"])) and describe(both).startswith("EFA in 6 of 6 layers")
    assert set(efa_parameters(both)) == {name for name, _ in both.named_parameters() if ".efa." in name}
    for name, seed in (("a", 3), ("b", 5)):
        bare = evaluate(stock(seed=seed), ethanol)["total_energy"]
        assert not torch.equal(evaluate(both[name], ethanol)["total_energy"], bare)
        with without_efa(both):
            assert torch.equal(evaluate(both[name], ethanol)["total_energy"], bare)


def test_options_of_parameter_groups():
    groups = EFAParamGroups(with_efa(), efa=OmegaConf.create({"name": "efa", "betas": [0.8, 0.99]}))
    assert groups[0]["name"] == "efa" and type(groups[0]["betas"]) is list
    with pytest.warns(EFAWarning, match="warmup_steps: no optimizer of torch has these options"):
        assert EFAParamGroups(with_efa(), base={"warmup_steps": 10})[1]["warmup_steps"] == 10


def test_the_code_of_a_package_does_not_run_new_blocks():
    """NequIP packages efa_addons from where it first finds it, which is the package that EFA was taken out of."""
    packaged = type("EFALayer", (EFALayer,), {"__module__": "<torch_package_0>.efa_addons.hosts.nequip.layer"})
    for version, fits in (("0.0.1", False), (__version__, True)):
        model = with_efa()
        for module in [module for module in model.modules() if isinstance(module, EFALayer)]:
            module.__class__, module.efa.version = packaged, version
        stripped = strip_efa(model, inplace=True)  # a copy would be of this version
        if fits:
            assert has_efa(insert_efa(stripped, EFAConfig(**EFA)))
            continue
        with pytest.raises(
            EFAError, match="has the code of efa_addons 0.0.1, and this is .* Package the model without EFA first"
        ):
            insert_efa(stripped, EFAConfig(**EFA))


def test_what_was_compiled_is_forgotten_where_the_model_changes(ethanol, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda model, **options: model)
    labels = {"total_energy": torch.zeros(2, 1), "forces": torch.zeros(2 * len(ethanol), 3)}

    def energies(model: torch.nn.Module) -> torch.Tensor:
        return evaluate(model, ethanol, ethanol, **labels)["total_energy"].detach()

    model = stock(compile_mode="compile", num_layers=1)
    before = energies(model)
    assert any(getattr(module, "_compiled_cache", ({},))[0] for module in model.modules())
    inserted = insert_efa(model, EFAConfig(**EFA), seed=1)
    assert torch.allclose(energies(inserted), before, rtol=0, atol=1e-12)
    randomize(inserted)
    assert not torch.allclose(energies(inserted), before, rtol=0, atol=1e-4)
    with pytest.raises(EFAError, match="cannot be switched off in a model that has been compiled"), without_efa(inserted):
        pass
    assert torch.allclose(energies(strip_efa(inserted)), before, rtol=0, atol=1e-12)


def test_models_of_older_packages_are_told_their_max_length():
    """Before NequIP 0.17 no layer was asked for metadata."""
    model = stock()
    older = type("GraphModel", (type(model),), {"metadata": property(lambda self: self._metadata.copy())})
    for kind, own in ((older, True), (type(model), False)):
        model.__class__ = kind
        inserted = insert_efa(model, EFAConfig(**EFA))
        assert inserted.metadata["efa_max_length"] == "8.0" and ("efa_max_length" in inserted._metadata) == own
        assert strip_efa(inserted).metadata == model.metadata and "efa_max_length" not in model.metadata


def test_statistics_without_forces():
    common, energies = (EFADataStatisticsManager(type_names=["H"], energy_only=only) for only in (False, True))
    assert {"max_length", "num_atoms_mean"} <= {*energies.names} & {*common.names}
    assert [name for name in common.names if "forces" in name] and not [name for name in energies.names if "forces" in name]
    with pytest.raises(EFAError, match="energy_only must be true or false, got 'yes'"):
        EFADataStatisticsManager(type_names=["H"], energy_only="yes")


def test_every_parameter_of_the_sequential_form_has_a_gradient(ethanol):
    for options in ({}, FULL, {"contraction": False}, {"use_bias": False, "include_self": False}, {"emulate": True}):
        model = randomize(with_efa(options, "sequential")).train()
        out = evaluate(model, ethanol)
        (out["total_energy"].sum() + out["forces"].square().sum()).backward()
        missing = [name for name, p in efa_parameters(model).items() if p.grad is None]
        assert not missing, options


def test_what_is_refused():
    for options, message in (
        ({"max_lenght": 3.0}, "did you mean 'max_length'"),
        ({}, r"max_length: \$\{training_data_stats:max_length\}"),
        ({**EFA, "normalization": "auto"}, r"normalization: \$\{training_data_stats:num_atoms_mean\}"),
        (3, "efa must be a mapping"),
    ):
        with pytest.raises(EFAError, match=message):
            NequIPEFAModel(efa=options, **SMALL)
    with pytest.raises(EFAError, match="mode must be parallel or sequential"):
        with_efa(mode="serial")
    with pytest.raises(EFAError, match="layers layer0_convnet"):
        insert_efa(torch.nn.Linear(1, 1), EFAConfig(**EFA))
    with pytest.raises(EFAError, match="must be a mapping with _target_"):
        InsertEFA(model={"package_path": "x"}, efa=EFA)
    with pytest.raises(EFAError, match="unknown option of an optimizer 'weigth_decay' .did you mean 'weight_decay'"):
        EFAParamGroups(with_efa(), efa={"weigth_decay": 0.5})
    for given in ("no", 1):
        with pytest.raises(EFAError, match=f"freeze_base must be true or false, got {given!r}"):
            InsertEFA(model={"_target_": "nequip.model.NequIPGNNModel", **SMALL}, efa=EFA, freeze_base=given)
    with pytest.raises(EFAError, match="efa is null, which keeps a base's EFA, and this base has none"):
        InsertEFA(model={"_target_": "nequip.model.NequIPGNNModel", **SMALL})
    with pytest.raises(EFAError, match="max_length_margin must be a number, 1 or more, got 'big'"):
        EFADataStatisticsManager(type_names=["H"], max_length_margin="big")


def test_the_same_configuration_without_efa():
    model = NequIPEFAModel(efa=False, mode="sequential", **SMALL)
    assert not has_efa(model) and model.state_dict().keys() == stock().state_dict().keys()
    with pytest.warns(EFAWarning, match="one group of all parameters"):
        (group,) = EFAParamGroups(model, efa={"lr": 0.1}, base={"lr": 0.2})
    assert group["lr"] == 0.2 and len(group["params"]) == len(list(model.parameters()))
    trainer, module = SimpleNamespace(sanity_checking=False, current_epoch=0), SimpleNamespace(model=model)
    with pytest.warns(EFAWarning, match="nothing to log"):
        EFAContributions().on_validation_batch_end(trainer, module, None, {}, 0)


def test_ml_iap_is_refused():
    with pytest.raises(EFAError, match="ML-IAP"):
        refuse_what_efa_cannot_serve({AtomicDataDict.EDGE_VECTORS_KEY: torch.zeros(1, 3)})
