"""PaiNNEFA as SchNetPack makes it, and what fine-tuning keeps of a base."""

from __future__ import annotations

import inspect
import pickle
import textwrap
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import schnetpack
import torch
from ase.build import molecule
from schnetpack.model import NeuralNetworkPotential
from schnetpack.representation import PaiNN, SchNet
from schnetpack.transform import AddOffsets, ASENeighborList, CastTo64, RemoveOffsets, ScaleProperty, SkinNeighborList

from efa_addons import EFAConfig, EFAError
from efa_addons.hosts import base as hosts_base
from efa_addons.hosts.derive import add_lines
from efa_addons.hosts.painn import (
    InsertEFA,
    PaiNNEFA,
    describe,
    efa_config,
    efa_parameters,
    insert_efa,
    load,
    save,
    strip_efa,
)
from efa_addons.hosts.painn import inspect as describe_inspect
from efa_addons.hosts.painn.describe import batch_of
from efa_addons.hosts.painn.model import FORWARD, SUPPORTED, efa_layers

EFA = {"max_length": 9.0, "normalization": 4.0, "num_features_qk": 4, "num_features_v": 4, "mlp_features": 8}
SOURCE = inspect.getsource(PaiNN.forward)


def options(**changes: Any) -> dict[str, Any]:
    radial, cutoff = schnetpack.nn.GaussianRBF(6, 2.0), schnetpack.nn.CosineCutoff(2.0)
    return {"n_atom_basis": 6, "n_interactions": 3, "radial_basis": radial, "cutoff_fn": cutoff, **changes}


def model_with(representation: torch.nn.Module, postprocessors: list | None = None) -> NeuralNetworkPotential:
    outputs = [schnetpack.atomistic.Atomwise(6, output_key="energy"), schnetpack.atomistic.Forces()]
    return NeuralNetworkPotential(representation, [schnetpack.atomistic.PairwiseDistances()], outputs, postprocessors).eval()


def randomized(model: torch.nn.Module, size: float = 0.15) -> torch.nn.Module:
    with torch.no_grad():
        for parameter in efa_parameters(model).values():
            parameter.normal_(std=size)
    return model


def energy(model: torch.nn.Module, atoms) -> torch.Tensor:
    return model(batch_of(model, [atoms]))["energy"].detach()


def test_only_lines_are_added_to_the_forward():
    before, after = textwrap.dedent(SOURCE).splitlines(), add_lines(SOURCE, FORWARD, "forward", SUPPORTED).splitlines()
    rest = iter(after)
    assert all(line in rest for line in before) and len(after) == len(before) + 4
    with pytest.raises(EFAError, match=r"0 times instead of once.*Supported: 2\.2\.0"):
        add_lines(SOURCE.replace("mixing(q, mu)", "mixed(q, mu)"), FORWARD, "forward", SUPPORTED)


def test_a_fresh_model_is_painn_until_trained():
    """The same seed gives the same PaiNN, and the same modules after it."""
    made = []
    for build in (lambda: PaiNN(**options()), lambda: PaiNNEFA(efa=EFA, **options())):
        torch.manual_seed(3)
        made.append(model_with(build()))
    assert torch.equal(*(energy(model, molecule("CH3CH2OH")) for model in made))
    stock, with_efa = (set(model.state_dict()) for model in made)
    assert stock < with_efa and all(".efa." in name for name in with_efa - stock)
    assert efa_config(made[1]) == EFAConfig.from_dict(EFA)


def test_the_first_layer_has_no_vectors_to_read():
    layers = efa_layers(PaiNNEFA(efa=EFA, **options()))
    assert [layer.block.irreps_in for layer in layers.values()] == ["6x0e", "6x0e+6x1o", "6x0e+6x1o"]
    assert {layer.block.irreps_out for layer in layers.values()} == {"6x0e+6x1o"}


def test_shared_interactions_share_their_efa():
    model = randomized(model_with(PaiNNEFA(efa=EFA, **options(shared_interactions=True))))
    assert list(efa_layers(model.representation)) == ["layer0"]
    assert model.representation.mixing[2].efa is model.representation.mixing[0].efa
    apart = describe(model_with(PaiNNEFA(efa={**EFA, "layers": [1]}, **options())), 20, 8)
    line = describe(model, 20, 8)
    assert line.startswith("EFA in 3 of 3 layers") and apart.startswith("EFA in 1 of 3 layers")
    one, three = (float(text.split(" MiB")[0].split()[-1]) for text in (apart, line))
    assert three > 2 * one  # of a training step, which keeps all three calls
    scripted = torch.jit.script(model)
    assert torch.allclose(energy(scripted, molecule("H2O")), energy(model, molecule("H2O")), rtol=0, atol=1e-5)
    with pytest.raises(EFAError, match=r"layers=\[1\] is impossible with shared_interactions"):
        PaiNNEFA(efa={**EFA, "layers": [1]}, **options(shared_interactions=True))


def test_what_is_refused():
    with pytest.raises(EFAError, match="did you mean 'max_length'"):
        PaiNNEFA(efa={"max_lenght": 3.0}, **options())
    with pytest.raises(EFAError, match="efa must be a mapping of EFA options, got 3"):
        PaiNNEFA(efa=3, **options())
    with pytest.raises(EFAError, match="a model with SchNet"):
        insert_efa(model_with(SchNet(**options())), EFAConfig(max_length=9.0))
    waiting = model_with(PaiNNEFA(efa={"max_length": "auto"}, **options()))
    with pytest.raises(EFAError, match="waits for a training set"):
        energy(waiting, molecule("H2O"))


def test_a_model_of_an_earlier_version_loads(tmp_path):
    """Attributes gained since are there, in the core and in the adapter."""
    model = randomized(model_with(PaiNNEFA(efa=EFA, **options())))
    expected = energy(model, molecule("CH3CH2OH"))
    for layer in efa_layers(model.representation).values():
        layer.block.version = "0.0.1"
        del layer.block.attention.pairwise_up_to
    torch.save(model, tmp_path / "best_model")
    assert torch.allclose(energy(load(tmp_path / "best_model"), molecule("CH3CH2OH")), expected, rtol=0, atol=1e-6)
    assert "finetuning" not in vars(model.representation)  # a default of the class serves those without


def test_a_state_dict_is_of_its_settings():
    """Lightning resumes by it, and options that no weight shows would become others without a word."""
    model = randomized(model_with(PaiNNEFA(efa=EFA, **options())))
    state = model.state_dict()
    same, older = (model_with(PaiNNEFA(efa=EFA, **options())) for _ in range(2))
    same.load_state_dict(state)
    older.load_state_dict({name: value for name, value in state.items() if not name.endswith("_extra_state")})
    for other in (same, older):
        assert torch.equal(energy(other, molecule("CH3CH2OH")), energy(model, molecule("CH3CH2OH")))
    for changes in ({"max_length": 20.0}, {"activation": "silu"}, {"include_self": False}, {"normalization": "auto"}):
        ((name, value),) = changes.items()
        changed = (
            f"other EFA settings: {name}: {1.0 if value == 'auto' else value} .checkpoint: {getattr(EFAConfig(**EFA), name)}.*"
        )
        with pytest.raises(EFAError, match=changed):
            model_with(PaiNNEFA(efa={**EFA, **changes}, **options())).load_state_dict(state)
    by_version = {
        name: {k: v for k, v in part.items() if k != "include_self"} if "_extra" in name else part
        for name, part in state.items()
    }
    same.load_state_dict(by_version)  # of one that did not have the option yet


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_autocast_and_matmul_precision_leave_the_phases_alone(precision):
    """Phases in bfloat16 would know positions to 1 in 256 only: a turn by a thousandth of a radian would not be seen."""
    model = randomized(model_with(PaiNNEFA(efa=EFA, **options())), 0.05)
    atoms, turned = molecule("CH3CH2OH"), molecule("CH3CH2OH")
    turned.rotate(30, "x")
    turned.positions += 100.0
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            here, there = energy(model, atoms).item(), energy(model, turned).item()
    finally:
        torch.set_float32_matmul_precision(before)
    full = energy(model, atoms).item()
    assert here == pytest.approx(full, abs=0.05 * (1 + abs(full)))  # what SchNetPack's own maps lose
    assert there == pytest.approx(here, abs=0.02 * (1 + abs(full)))


class Data(SimpleNamespace):
    """What a model looks at of a SchNetPack data module."""

    def __init__(self, transforms: list, datapath: str = "data.db", **indices: list[int]) -> None:
        same = {f"{part}_transforms": transforms for part in ("train", "val", "test")}
        super().__init__(
            **same, datapath=datapath, val_idx=[], test_idx=[], batch_size=4, train_dataset=Structures(), **indices
        )


class Structures:
    def __len__(self) -> int:
        return 1

    def iter_properties(self, indices, load_properties, load_structure):
        yield {"_positions": torch.tensor(molecule("H2O").positions)}


def base_model(tmp_path) -> str:
    offsets = AddOffsets(
        "energy", add_mean=True, add_atomrefs=True, property_mean=torch.tensor([-3.0]), atomrefs=torch.arange(100.0)
    )
    model = model_with(PaiNN(**options()), [CastTo64(), offsets, ScaleProperty("energy", scale=torch.tensor([2.0]))])
    save(model, tmp_path / "best_model")
    return str(tmp_path / "best_model")


def test_what_was_frozen_is_trained_again_unless_it_is_frozen_again(tmp_path):
    save(InsertEFA(base_model(tmp_path), efa=EFA, freeze_base=True), tmp_path / "frozen")
    frozen = load(tmp_path / "frozen")
    assert {name for name, p in frozen.named_parameters() if p.requires_grad} == {*efa_parameters(frozen)}
    for model in (InsertEFA(str(tmp_path / "frozen")), strip_efa(frozen)):
        assert all(p.requires_grad for p in model.parameters())
    assert not all(p.requires_grad for p in InsertEFA(str(tmp_path / "frozen"), freeze_base=True).parameters())


def test_two_offsets_of_a_property(tmp_path):
    mean = AddOffsets("energy", add_mean=True, property_mean=torch.tensor([-3.0]))
    atoms = AddOffsets("energy", add_atomrefs=True, atomrefs=torch.arange(100.0))
    save(model_with(PaiNN(**options()), [mean, atoms]), tmp_path / "best_model")
    path = str(tmp_path / "best_model")

    def removes(**flags: bool) -> RemoveOffsets:
        return RemoveOffsets("energy", property_mean=torch.tensor([-7.0]), **flags)

    nothing = RemoveOffsets("energy")
    both = [
        [removes(remove_mean=True), nothing, removes(remove_atomrefs=True)],
        [removes(remove_mean=True, remove_atomrefs=True)],
    ]
    for transforms in both:
        InsertEFA(path, efa=EFA).initialize_transforms(Data(transforms))
        assert transforms[0].mean.item() == -3.0 and torch.equal(transforms[-1].atomref, torch.arange(100.0))
    twice = [removes(remove_mean=True), removes(remove_mean=True, remove_atomrefs=True)]
    for transforms in ([removes(remove_atomrefs=True)], [removes(remove_mean=True)], twice):
        with pytest.raises(
            EFAError, match="train set remove offsets with.* and the base adds them with .* and .*make them equal"
        ):
            InsertEFA(path, efa=EFA).initialize_transforms(Data(transforms))
    for part in ("val", "test"):
        data = Data(both[0])
        setattr(data, f"{part}_transforms", [])
        with pytest.raises(EFAError, match=f"data.transforms of the {part} set remove none"):
            InsertEFA(path, efa=EFA).initialize_transforms(data)


def test_offsets_and_scales_of_the_base_are_kept_and_the_data_lose_them(tmp_path):
    model = InsertEFA(base_model(tmp_path), efa=EFA)
    other = RemoveOffsets("energy", remove_mean=True, remove_atomrefs=True, property_mean=torch.tensor([-7.0]))
    model.initialize_transforms(Data([other]))
    assert other.mean.item() == -3.0 and torch.equal(other.atomref, torch.arange(100.0))
    assert model.postprocessors[1].mean.item() == -3.0 and model.postprocessors[2].scale.item() == 2.0
    assert model.representation.finetuning is None  # the model that is saved goes on from here


@pytest.mark.parametrize(
    ("transforms", "message"),
    [
        ([], "adds offsets to 'energy' and data.transforms of the train set remove none"),
        ([RemoveOffsets("energy", remove_mean=True)], "remove_atomrefs: False.*base adds them with.*remove_atomrefs: True"),
        ([RemoveOffsets("charge", remove_mean=True)], "property: charge.*the base adds none: leave RemoveOffsets out"),
    ],
    ids=["none", "others", "too many"],
)
def test_offsets_that_do_not_fit_the_base_are_errors(tmp_path, transforms, message):
    model = InsertEFA(base_model(tmp_path), efa=EFA)
    with pytest.raises(EFAError, match=message):
        model.initialize_transforms(Data(transforms))


@pytest.mark.parametrize(
    ("neighbors", "fits"),
    [
        (ASENeighborList(2.0), True),
        (ASENeighborList(5.0), True),  # what is beyond the base's cutoff counts nothing
        (ASENeighborList(1.5), False),
        (SkinNeighborList(ASENeighborList(1.5), [], cutoff_skin=3.0), False),
    ],
    ids=["equal", "larger", "smaller", "smaller with a skin"],
)
def test_a_smaller_cutoff_than_the_bases_is_an_error(tmp_path, neighbors, fits):
    model = InsertEFA(base_model(tmp_path), efa=EFA)
    data = Data([RemoveOffsets("energy", remove_mean=True, remove_atomrefs=True), neighbors])
    if fits:
        model.initialize_transforms(data)
        return
    with pytest.raises(EFAError, match="list neighbors up to 1.5 .*, and the base sees them up to 2: .* globals.cutoff=2"):
        model.initialize_transforms(data)


def test_an_equal_cutoff_that_single_precision_rounds_up_is_no_smaller_one(tmp_path):
    radial, cutoff = schnetpack.nn.GaussianRBF(6, 35.9), schnetpack.nn.CosineCutoff(35.9)
    save(model_with(PaiNN(**options(radial_basis=radial, cutoff_fn=cutoff))), tmp_path / "best_model")
    InsertEFA(str(tmp_path / "best_model"), efa=EFA).initialize_transforms(Data([ASENeighborList(35.9)]))


def test_the_memory_is_of_the_device_of_training_and_left_out_without_a_batch_size(caplog, monkeypatch):
    caplog.set_level("INFO")
    devices = []
    monkeypatch.setattr(hosts_base, "describe", lambda *given: devices.append(given[-1]) or "EFA is described")
    data = Data([])
    data.trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("cuda:1")))
    model_with(PaiNNEFA(efa=EFA, **options())).initialize_transforms(data)
    model_with(PaiNNEFA(efa=EFA, **options())).initialize_transforms(Data([]))
    del data.batch_size
    model_with(PaiNNEFA(efa=EFA, **options())).initialize_transforms(data)
    assert devices == [torch.device(name) for name in ("cuda:1", "cpu", "cpu")] and caplog.text.count("described") == 3


def test_charge_and_spin_are_taken_from_structures():
    embedding = schnetpack.nn.ElectronicEmbedding("total_charge", 6, num_residual=1, is_charged=True)
    with torch.no_grad():
        [parameter.normal_() for parameter in embedding.parameters()]
    model = randomized(model_with(PaiNNEFA(efa=EFA, **options(electronic_embeddings=[embedding]))))
    neutral, ion = molecule("H2O"), molecule("H2O")
    ion.info["total_charge"] = 1
    assert not torch.allclose(*(energy(model, atoms) for atoms in (neutral, ion)))
    both = model(batch_of(model, [neutral, ion]))["energy"].detach()
    assert torch.allclose(both, torch.cat([energy(model, neutral), energy(model, ion)]), rtol=0, atol=1e-5)
    assert "norm of EFA's output" in describe_inspect(model)


def test_training_without_a_data_module(tmp_path, caplog):
    """As of plain PaiNN from data loaders; where numbers or offsets come from the training set, there must be one."""
    caplog.set_level("INFO")
    model_with(PaiNNEFA(efa=EFA, **options())).initialize_transforms(None)
    assert "EFA in 3 of 3 layers" in caplog.text
    waiting = model_with(PaiNNEFA(efa={**EFA, "max_length": "auto"}, **options()))
    for model in (waiting, InsertEFA(base_model(tmp_path), efa=EFA)):
        with pytest.raises(EFAError, match="training set of a SchNetPack data module, and there is NoneType: train with"):
            model.initialize_transforms(None)


def test_known_structures_are_reported(tmp_path, caplog):
    path = base_model(tmp_path)
    np.savez(tmp_path / "split.npz", train_idx=np.arange(10), val_idx=[10], test_idx=[11, 12])
    removes = [RemoveOffsets("energy", remove_mean=True, remove_atomrefs=True)]
    for indices, known in (([11, 12], 0), ([1, 2, 11], 2)):
        caplog.clear()
        data = Data(removes)
        data.test_idx = indices
        InsertEFA(path, efa=EFA).initialize_transforms(data)
        assert (f"{known} of {len(indices)} structures of the test set" in caplog.text) == bool(known)
    (tmp_path / "config.yaml").write_text("data: {datapath: /elsewhere/other.db}")
    caplog.clear()
    InsertEFA(path, efa=EFA).initialize_transforms(data)
    assert "structures of the test set" not in caplog.text


def test_targets_refuse_what_they_do_not_know(tmp_path):
    path = base_model(tmp_path)
    with pytest.raises(EFAError, match="unknown option of efa_finetune 'freez_base' .did you mean 'freeze_base'"):
        InsertEFA(path, freez_base=True)
    with pytest.raises(EFAError, match="nowhere is no file"):
        InsertEFA("nowhere")
    with pytest.raises(EFAError, match="efa is null, which keeps a base's EFA, and this base has none"):
        InsertEFA(path)
    (tmp_path / "task").write_bytes(pickle.dumps(torch.nn.Linear(1, 1)))
    with pytest.raises(EFAError, match="task is no best_model of spktrain"):
        InsertEFA(str(tmp_path / "task"), efa=EFA)
    for efa in (True, "auto"):
        with pytest.raises(EFAError, match=f"efa must be a mapping of EFA options, got {efa!r}"):
            InsertEFA(path, efa=efa)
    with pytest.raises(EFAError, match="freeze_base must be true or false, got 'no'"):
        InsertEFA(path, efa=EFA, freeze_base="no")
    frozen = InsertEFA(path, efa=EFA, freeze_base=True)
    assert {name for name, p in frozen.named_parameters() if p.requires_grad} == set(efa_parameters(frozen))
    tuned = insert_efa(load(path), EFAConfig.from_dict(EFA))
    save(tuned, tmp_path / "tuned")
    assert efa_config(InsertEFA(str(tmp_path / "tuned"))) == EFAConfig.from_dict(EFA)
    assert pickle.loads(pickle.dumps(InsertEFA(path, efa=EFA))).representation.finetuning.offsets.keys() == {"energy"}
