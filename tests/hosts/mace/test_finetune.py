"""Fine-tuning with EFA: a stock foundation that gets it, one that has it; several heads with replay, LoRA, freezing."""

from __future__ import annotations

import ase.io
import pytest
import torch
from mace_support import SMALL, batch_of, evaluate, losses, randomize, records, split

from efa_addons import EFAConfig, EFAError
from efa_addons.hosts.mace import efa_config, has_efa, insert_efa, load, save
from efa_addons.hosts.mace.insert import efa_parameters

SINGLE = ("--multiheads_finetuning", "False", "--E0s", "foundation")
STILL = ("--lr", "1e-12")  # a step that proves the optimizer runs and changes nothing one could see


@pytest.fixture(scope="module")
def foundation(trained, workspace):
    """A model of one epoch with EFA blocks of random weights."""
    path = workspace / "foundation.model"
    save(randomize(load(trained("efa", "--efa", *SMALL) / "efa.model"), 0.05), path)
    return path


def replay(trained, workspace, name: str, foundation, *flags: str):
    """Multi-head fine-tuning on half of the data with the other half as replay, at a step of nothing."""
    train, pretraining = split(workspace, name, slice(0, 6), slice(6, 12))
    files = ("--train_file", train, "--pt_train_file", pretraining, "--E0s", "foundation", "--batch_size", "3")
    heads = ("--foundation_model", str(foundation), "--multiheads_finetuning", "True", "--force_mh_ft_lr", "True", *STILL)
    return trained(name, *heads, *files, *flags) / f"{name}.model"


def energies(model, atoms) -> list[float]:
    """Of each head."""
    data = batch_of(model, atoms)
    return [model({**data, "head": torch.tensor([head])})["energy"].item() for head in range(len(model.heads))]


def moved(before, after) -> dict[str, bool]:
    """Which parts of a model have other parameters than before; EFA as a part of its own."""
    old, parts = before.state_dict(), {}
    for name, parameter in after.state_dict().items():
        part = "efa" if ".efa." in name else name.partition(".")[0]
        changed = not torch.allclose(parameter, old[name], rtol=0, atol=1e-12)
        parts[part] = parts.get(part, False) or changed
    return parts


@pytest.mark.parametrize("stock", [True, False], ids=["mace_run_train", "efa-mace-train"])
def test_fine_tuning_a_model_with_efa(trained, workspace, stock):
    """The loss before the first step is the one the model ended with: no weight was lost on the way."""
    base = load(trained("efa", "--efa", *SMALL) / "efa.model")
    foundation = workspace / "foundation.model"
    save(randomize(base, 0.05), foundation)
    # --lr 0 would be refused by no one, but a tiny step keeps the optimizer honest
    flags = ("--foundation_model", str(foundation), "--multiheads_finetuning", "False", "--lr", "1e-12")
    folder = trained(f"tuned_{stock}", *flags, "--E0s", "foundation", stock=stock)
    tuned = load(folder / f"tuned_{stock}.model")
    assert has_efa(tuned) and efa_config(tuned) == efa_config(base)
    atoms = ase.io.read(workspace / "train.xyz", index=2)
    expected, found = evaluate(base, atoms), evaluate(tuned, atoms)
    assert torch.allclose(found["energy"], expected["energy"], rtol=0, atol=1e-8)
    assert torch.allclose(found["forces"], expected["forces"], rtol=0, atol=1e-8)


def test_fine_tuning_a_stock_model_with_efa_switched_on_starts_where_stock_does(trained, workspace):
    base = trained("stock", stock=True) / "stock.model"
    flags = ("--foundation_model", str(base), "--multiheads_finetuning", "False", "--E0s", "foundation")
    plain = trained("tuned_plain", *flags)
    with_efa = trained("tuned_new", *flags, "--efa", "--efa_max_length", "8")
    assert has_efa(load(with_efa / "tuned_new.model"))
    assert losses(with_efa)[0] == losses(plain)[0]


def test_other_settings_than_the_foundation_models_are_refused(trained, workspace):
    base = trained("efa", "--efa", *SMALL) / "efa.model"
    flags = ("--foundation_model", str(base), "--multiheads_finetuning", "False", "--E0s", "foundation")
    for given in ("8", "16"):  # 16 is the default of the option
        with pytest.raises(EFAError, match=f"num_features_qk: {given} .the model has 4."):
            trained(f"refused_{given}", *flags, "--efa_num_features_qk", given)
    with pytest.raises(EFAError, match="has EFA, which false for efa does not take out: `efa-addons strip`"):
        trained("refused_off", *flags, "--efa", "false")


def test_a_portable_file_as_foundation(trained):
    with pytest.raises(SystemExit, match="MACE reads .model files: efa-addons convert it.efa it.model, and give that"):
        trained("from_portable", "--foundation_model", "it.efa", *SINGLE)


def test_lora_leaves_efa_whole(stock_model, ethanol):
    from mace.modules import lora

    model = randomize(insert_efa(stock_model, EFAConfig(max_length=8.0, num_features_qk=4, mlp_features=8)))
    names = set(efa_parameters(model))
    expected = evaluate(model, ethanol)["energy"]
    with_lora = lora.inject_LoRAs(model, rank=2, alpha=1)
    assert set(efa_parameters(with_lora)) == names
    assert all(p.requires_grad for p in efa_parameters(with_lora).values())
    frozen = [n for n, p in with_lora.named_parameters() if n not in names and not p.requires_grad]
    assert frozen and all("lora_" not in name for name in frozen)
    merged = lora.merge_lora_weights(with_lora)
    assert torch.allclose(evaluate(merged, ethanol)["energy"], expected, rtol=0, atol=1e-9)


def test_what_a_foundation_says_of_itself_is_kept(trained, foundation):
    """Cutoff, elements, reference energies; flags of this run that say otherwise are MACE's to ignore."""
    base = load(foundation)
    folder = trained(
        "kept", "--foundation_model", str(foundation), *SINGLE, *STILL, "--r_max", "3.5", "--foundation_model_elements", "True"
    )
    tuned = load(folder / "kept.model")
    for name in ("r_max", "atomic_numbers"):
        assert torch.equal(getattr(tuned, name), getattr(base, name)), name
    assert torch.equal(tuned.atomic_energies_fn.atomic_energies, base.atomic_energies_fn.atomic_energies)
    assert efa_config(tuned) == efa_config(base) and tuned.heads == ["Default"]


@pytest.mark.parametrize("kind", ["stock", "efa"])
def test_heads_with_replay_start_from_the_foundation(trained, workspace, ethanol, foundation, kind, monkeypatch):
    """Every head computes what the foundation computes, EFA or not; one selected head computes what it did among two."""
    from mace.cli import select_head

    base = foundation if kind == "efa" else trained("stock", stock=True) / "stock.model"
    flags = () if kind == "efa" else ("--efa", "--efa_max_length", "8", *SMALL)
    path = replay(trained, workspace, f"replay_{kind}", base, *flags)
    both = load(path)
    assert both.heads == ["pt_head", "Default"] and has_efa(both)
    expected = evaluate(load(base), ethanol)["energy"].item()
    assert energies(both, ethanol) == pytest.approx([expected] * 2, abs=1e-9)
    monkeypatch.setattr("sys.argv", ["mace_select_head", "--head_name", "Default", str(path)])
    dtype = torch.get_default_dtype()
    select_head.main()
    torch.set_default_dtype(dtype)
    single = load(f"{path}.Default")
    assert has_efa(single) and evaluate(single, ethanol)["energy"].item() == pytest.approx(
        energies(both, ethanol)[1], abs=1e-12
    )


def test_one_head_of_a_foundation_with_several(trained, workspace, ethanol, foundation):
    both = replay(trained, workspace, "replay_efa", foundation)
    flags = ("--foundation_model", str(both), "--foundation_head", "Default", *SINGLE, *STILL)
    model = load(trained("one_of_two", *flags) / "one_of_two.model")
    assert has_efa(model) and len(model.heads) == 1
    assert evaluate(model, ethanol)["energy"].item() == pytest.approx(energies(load(both), ethanol)[1], abs=1e-9)


def test_pseudolabels_come_from_the_foundation_with_efa(trained, workspace, ethanol, foundation):
    """Replay labels computed by the foundation itself: there is no error on them before the first step."""

    def first_error(path) -> float:
        return next(record["rmse_f"] for record in records(path.parent) if record.get("head") == "pt_head")

    pseudo = replay(trained, workspace, "pseudo", foundation, "--pseudolabel_replay", "True")
    assert has_efa(load(pseudo)) and first_error(pseudo) < 1e-10
    assert first_error(replay(trained, workspace, "replay_efa", foundation)) > 1e-2


@pytest.mark.parametrize("kind", ["stock", "efa"])
def test_a_foundation_by_its_name(trained, workspace, ethanol, foundation, kind, monkeypatch):
    """MACE's loader of published models, with a small one where it keeps what it has downloaded."""
    base = foundation if kind == "efa" else trained("stock", stock=True) / "stock.model"
    cache = workspace / f"cache_{kind}" / "mace"
    cache.mkdir(parents=True)
    (cache / "20231210mace128L0_energy_epoch249model").write_bytes(base.read_bytes())
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache.parent))
    monkeypatch.setattr("urllib.request.urlopen", None)
    flags = () if kind == "efa" else ("--efa", "--efa_max_length", "8", *SMALL)
    folder = trained(f"named_{kind}", "--foundation_model", "small", *SINGLE, *STILL, *flags)
    model = load(folder / f"named_{kind}.model")
    assert has_efa(model) and all(p.requires_grad for p in efa_parameters(model).values())
    assert evaluate(model, ethanol)["energy"].item() == pytest.approx(evaluate(load(base), ethanol)["energy"].item(), abs=1e-9)


def test_lora_trains_efa_in_full(trained, foundation):
    flags = ("--foundation_model", str(foundation), *SINGLE, "--lora", "True", "--lora_rank", "2")
    base, tuned = load(foundation), load(trained("lora", *flags) / "lora.model")
    assert tuned.state_dict().keys() == base.state_dict().keys()  # LoRA's own matrices are merged
    parts = moved(base, tuned)
    assert parts["efa"] and parts["interactions"]
    before = efa_parameters(base)
    assert all(not torch.equal(p, before[name]) for name, p in efa_parameters(tuned).items())
    with pytest.raises(EFAError, match="freeze_base trains EFA alone, and --lora more than that: leave one of the two out"):
        trained("lora_frozen", *flags, "--efa_freeze_base", "true")


@pytest.mark.parametrize("level, trained_parts", [("5", {"efa", "products", "readouts"}), ("6", {"efa", "readouts"})])
def test_freezing_levels_of_mace_leave_efa_to_train(trained, foundation, level, trained_parts):
    flags = ("--foundation_model", str(foundation), *SINGLE, "--freeze", level)
    tuned = load(trained(f"freeze_{level}", *flags) / f"freeze_{level}.model")
    assert {part for part, changed in moved(load(foundation), tuned).items() if changed} == trained_parts
