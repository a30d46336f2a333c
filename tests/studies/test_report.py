"""The report from synthetic numbers; nothing is trained."""

import csv
import json
from dataclasses import asdict
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("ase")

from efa_addons.studies import cumulene, measures, report, results
from efa_addons.studies.record import Profile
from efa_addons.studies.sources.cumulenes import SCAN

TWISTS = tuple(np.linspace(0, 90, 7))
REFERENCE = tuple(-500 + 0.8 * np.cos(np.radians(TWISTS)) ** 2)


def _profile(height):
    return Profile(asdict(SCAN), TWISTS, tuple(-499 + height * np.cos(np.radians(TWISTS)) ** 2), REFERENCE)


def _result(name, label, height, kind):
    profile = _profile(height)
    return results.Result(
        name=name,
        label=label,
        kind=kind,
        energy_mae=1.0,
        energy_rmse=1.25,
        force_mae=10.0,
        force_rmse=20.0,
        scan_deviation=1e3 * measures.deviations(profile).max(),
        barrier_error=1e3 * measures.barrier_error(profile),
        num_parameters=12345,
        seconds_per_epoch=1.5,
        profile=profile,
    )


MACE = results.HostResults(
    "MACE",
    (
        _result("mace", "MACE", 0.0, "plain"),
        _result("mace_efa", "MACE + EFA", 0.78, "efa"),
        _result("mace_efa_scalar", "MACE + scalar EFA", 0.02, "scalar"),
    ),
)
PAINN = results.HostResults("PaiNN", (_result("painn", "PaiNN", 0.0, "plain"), _result("painn_efa", "PaiNN + EFA", 0.7, "efa")))


def test_profiles_are_compared_with_means_aligned():
    shifted, flat = _profile(0.8), _profile(0.0)
    np.testing.assert_allclose(measures.deviations(shifted), 0, atol=1e-9)
    assert measures.barrier_error(flat) == pytest.approx(-0.8)
    assert measures.deviations(flat).max() == pytest.approx(0.4)
    np.testing.assert_allclose(measures.aligned(flat), -499.6, rtol=0, atol=1e-9)


def test_errors_are_in_milli_electronvolts(data):
    """Energies too high by 0.13 eV, and by 0.3 eV more without a twist; forces by 0.02 eV/Å."""

    class Calculator:
        def calculate(self, atoms, properties):
            energy = atoms.info[cumulene.ENERGY] + 0.13 + 0.3 * np.cos(atoms.info[cumulene.TWIST]) ** 2
            self.results = {"energy": energy, "forces": atoms.arrays[cumulene.FORCES] + 0.02}

    host = SimpleNamespace(calculator=lambda model: (Calculator(), 7), seconds_per_epoch=lambda folder: 1.0)
    run = SimpleNamespace(host=host, model=None, folder=None, variant=SimpleNamespace(name="a", label="A", kind="efa"))
    found = results.evaluate(run, data)
    error = 130 + 300 * np.cos(np.radians(TWISTS)) ** 2
    assert found.energy_mae == pytest.approx(error.mean() / 13)
    assert found.energy_rmse == pytest.approx(np.sqrt((error**2).mean()) / 13)
    assert found.force_mae == pytest.approx(20) and found.force_rmse == pytest.approx(20)
    assert found.barrier_error == pytest.approx(300)
    assert found.scan_deviation == pytest.approx(np.abs(error - error.mean()).max())
    assert found.profile.x == pytest.approx(TWISTS) and found.profile.reference == pytest.approx(REFERENCE)


@pytest.fixture
def data(tmp_path):
    """Files as `cumulene.make` leaves them, with REFERENCE as the scan."""
    import ase.io

    folder = tmp_path / "data"
    folder.mkdir()
    scan = []
    for twist, energy in zip(TWISTS, REFERENCE, strict=True):
        atoms = cumulene.cumulene(np.radians(twist))
        atoms.info[cumulene.ENERGY] = energy
        atoms.arrays[cumulene.FORCES] = atoms.positions.copy()
        scan.append(atoms)
    for name in cumulene.FILES:
        ase.io.write(folder / name, scan, format="extxyz")
    return folder


def test_the_report_takes_every_host_of_the_folder(tmp_path, data, capsys):
    pytest.importorskip("matplotlib")
    results.save(tmp_path / "painn", PAINN, data)
    report.write(tmp_path, data)
    assert len((tmp_path / "table.md").read_text(encoding="utf-8").splitlines()) == 4
    results.save(tmp_path / "mace", MACE, data, {"seed": 3})
    report.write(tmp_path, data)
    assert "PaiNN + EFA" in capsys.readouterr().out
    table = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert "| MACE | 1.0 / 1.2 | 10 / 20 | 400 | -800 | 12,345 | 1.5 |" in table
    assert "energy MAE / RMSE meV/atom" in table and "parameters" in table
    with (tmp_path / "table.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    labels = [row["label"] for row in rows]
    assert labels == ["MACE", "MACE + EFA", "MACE + scalar EFA", "PaiNN", "PaiNN + EFA"]
    assert float(rows[1]["barrier_error"]) == pytest.approx(-20)


def test_results_survive_the_file(tmp_path, data):
    results.save(tmp_path / "mace", MACE, data)
    found, outdated = results.collect(tmp_path, data)
    assert found == [MACE] and outdated == []


def test_results_on_other_data_are_left_out(tmp_path, data, capsys):
    pytest.importorskip("matplotlib")
    results.save(tmp_path / "mace", MACE, data)
    test = data / "test.xyz"
    test.write_text(test.read_text() + test.read_text())
    results.save(tmp_path / "painn", PAINN, data)
    report.write(tmp_path, data)
    said = "belongs to other data, or to an earlier version, and is left out: run the demonstration again with --host mace"
    assert said in capsys.readouterr().out
    assert "MACE" not in (tmp_path / "table.md").read_text(encoding="utf-8")


def test_results_of_an_earlier_version_are_left_out(tmp_path, data):
    for change in (
        lambda entry: {"profile": {"twists": entry["profile"]["x"], "energies": entry["profile"]["energies"]}},
        lambda entry: {"scan_mae": 3.0},
    ):
        results.save(tmp_path / "mace", MACE, data)
        path = tmp_path / "mace" / results.FILE
        content = json.loads(path.read_text())
        content["results"] = [{**entry, **change(entry)} for entry in content["results"]]
        path.write_text(json.dumps(content))
        assert results.collect(tmp_path, data) == ([], ["mace"])


@pytest.mark.parametrize("found", [[MACE], [PAINN], [MACE, PAINN]])
def test_the_plot_has_a_panel_per_host_and_one_legend(found, tmp_path, monkeypatch):
    figure = pytest.importorskip("matplotlib.figure")
    drawn = []
    monkeypatch.setattr(figure.Figure, "savefig", lambda self, *args, **options: drawn.append(self))
    report.plot(tmp_path / "profile.png", found)
    (picture,) = drawn
    assert [axes.get_title() for axes in picture.axes] == [host.label for host in found]
    for axes, host in zip(picture.axes, found, strict=True):
        reference, *models = axes.lines
        np.testing.assert_allclose(reference.get_ydata(), np.array(REFERENCE) + 500)
        assert len(models) == len(host.results) and axes.get_legend() is None
    (legend,) = picture.legends
    kinds = {result.kind for host in found for result in host.results}
    assert [text.get_text() for text in legend.get_texts()] == [
        "GFN2-xTB",
        *(report.STYLES[kind][0] for kind in report.STYLES if kind in kinds),
    ]


def test_plot_is_a_png(tmp_path):
    pytest.importorskip("matplotlib")
    report.plot(tmp_path / "profile.png", [MACE, PAINN])
    assert (tmp_path / "profile.png").read_bytes().startswith(b"\x89PNG")
