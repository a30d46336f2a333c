"""A study in its tiny size, for the host that is installed: every step, from the file to the report, none of its figures."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

pytest.importorskip("ase")

from ase import Atoms, io

from efa_addons.cli import main
from efa_addons.studies import cumulene, hosts
from efa_addons.studies.common import labelled
from efa_addons.studies.evaluate import errors, evaluate, predict
from efa_addons.studies.record import read_all, same_split
from efa_addons.studies.sources.pairs import pair_sum
from efa_addons.studies.sources.two_atoms import potential
from efa_addons.studies.worker import NAME, TRAINING

TWO_ATOMS = Path(__file__).parents[2] / "configs" / "studies" / "two_atoms.yaml"


@pytest.mark.parametrize("host", hosts.NAMES)
def test_tiny_study_from_file_to_report(host, tmp_path, capsys):
    pytest.importorskip(hosts.PACKAGES[host])
    content = yaml.safe_load(TWO_ATOMS.read_text())
    kept = {label: content["variants"][label] for label in ("without EFA", "with EFA")}
    content["variants"] = {**kept, "broken": {"efa": {"max_length": 12.0, "ti_max_degree": 1}}}
    content["dynamics"] = {"set": "scan", "variants": ["with EFA"]}
    path = tmp_path / "pairs.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    out = tmp_path / "out"
    command = ["study", str(path), "--size", "tiny", "--out", str(out), "--hosts", host, "--python", f"{host}={sys.executable}"]
    assert main(command) == 1  # one failed
    printed = capsys.readouterr().out
    found = {record.variant: record for record in read_all(out)[0].values()}
    assert [found[label].status for label in content["variants"]] == ["finished", "finished", "failed"], found
    assert "failed" in printed and "training broken failed" in found["broken"].error

    plain, efa = found["without EFA"], found["with EFA"]
    assert same_split([plain, efa]) and set(plain.split) == {"train", "valid", "test", "scan"}
    assert plain.settings["efa"] is None and efa.settings["efa"]["max_length"] == 12.0
    assert 0 < plain.num_parameters < efa.num_parameters
    for record in (plain, efa):
        assert set(record.metrics) == {"test", "scan"} and 0 < record.metrics["test"]["energy_mae"] < 10
        assert len(record.profiles["scan"].energies) == len(record.profiles["scan"].x) > 3
        assert record.curve[-1]["epoch"] == record.settings["training"]["num_epochs"] == 2
        assert 0 < record.curve[-1]["seconds"] <= record.seconds["total"] and record.peak_memory > 50
        assert record.versions[hosts.DISTRIBUTIONS[host]] and "train" in " ".join(record.settings["command"])
    assert plain.dynamics == {} and efa.dynamics["fell_apart"] is None and len(efa.dynamics["energy"]) == 5
    report = (out / "pairs" / "tiny" / "report.md").read_text()
    assert f"{hosts.LABELS[host]}, with EFA" in report and "broken" in report
    assert (out / "pairs" / "tiny" / "report.html").exists()


@pytest.mark.parametrize("host", hosts.NAMES)
def test_tiny_fine_tuning_goes_on_from_its_base(host, tmp_path):
    """On data that have the last two of the base's three elements, and less than a batch: each is what it was to the base."""
    pytest.importorskip(hosts.PACKAGES[host])
    content = yaml.safe_load(TWO_ATOMS.read_text())
    content["variants"] = {label: content["variants"][label] for label in ("without EFA", "with EFA")}
    for name, pairs, distances in (
        ("all", ((1, 2), (1, 3), (2, 3)), (1.0, 1.5, 2.0, 3.0)),
        ("train", ((2, 3),), (1.0, 2.0, 10.0)),
        ("valid", ((2, 3),), (1.2, 1.7)),
    ):
        io.write(tmp_path / f"{name}.xyz", [pair(*numbers, r) for r in distances for numbers in pairs])
    train, valid = str(tmp_path / "train.xyz"), str(tmp_path / "valid.xyz")
    content["base"] = {"data": {"source": "files", "train": str(tmp_path / "all.xyz")}}
    scans = {"scan": {"x": "distance", "label": "distance"}}
    test = {"test": valid, "scan": train}
    content["data"] = {"two": {"source": "files", "train": train, "valid": valid, "test": test, "scans": scans}}
    content["literature"] = []
    content["training"]["lr"] = 1e-9  # so that it stays where it was
    path = tmp_path / "pairs.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    command = [
        "study",
        str(path),
        "--size",
        "tiny",
        "--out",
        str(tmp_path),
        "--hosts",
        host,
        "--python",
        f"{host}={sys.executable}",
    ]
    assert main(command) == 0
    found = {record.variant: record for record in read_all(tmp_path)[0].values()}
    assert {label: record.error for label, record in found.items()} == {"base": "", "without EFA": "", "with EFA": ""}
    plain, efa = found["without EFA"], found["with EFA"]
    assert plain.num_parameters < efa.num_parameters  # MACE's has fewer than the base: it leaves out the third element
    # an inserted EFA changes nothing, nor do steps of length zero
    data, module = tmp_path / "pairs/tiny/data/two", hosts.load(host)
    base = tmp_path / f"pairs/tiny/base/{host}/base/seed-0" / TRAINING
    calculator, _ = module.calculator(module.model_file(NAME, base))
    _, profiles = evaluate(calculator, data)
    valid = cumulene.read(data, "valid")
    seen = errors(valid, *predict(calculator, valid))
    for record in (plain, efa):
        assert record.profiles["scan"].energies == pytest.approx(profiles["scan"].energies, abs=1e-5)
        assert record.curve[-1]["energy_mae"] == pytest.approx(seen["energy_mae"], abs=1e-4)  # of the training itself


def pair(first: int, second: int, r: float) -> Atoms:
    """Two atoms at a distance, labelled."""
    positions = np.array([[0.0, 0.0, 0.0], [0.0, 0.0, r]])
    return labelled(Atoms([first, second], positions, info={"distance": r}), *pair_sum(positions, potential))


def test_paths_of_every_kind_reach_hydra():
    parser = pytest.importorskip("hydra.core.override_parser.overrides_parser").OverridesParser.create()
    for path in ("/a/b_c.d-e", "/a b/c", "/a=b/c,d/[e]{f}(g)", "/jürgen/it's", "/a\\'b", "/1/+2"):
        found = parser.parse_override(hosts.override("data.datapath", Path(path)))
        assert (found.key_or_group, found.value()) == ("data.datapath", path)


def test_painn_reads_each_structure_once():
    pytest.importorskip("schnetpack")
    from efa_addons.studies.hosts.painn import Kept

    read = []

    class Data:
        def __len__(self):
            return 2

        def __getitem__(self, index):
            read.append(index)
            return {"index": index}

    kept = Kept(Data())
    kept[0]["changed"] = True  # as a host may do to what it is given
    assert [kept[i] for i in (0, 1, 0)] == [{"index": 0}, {"index": 1}, {"index": 0}]
    assert read == [0, 1] and len(kept) == 2
