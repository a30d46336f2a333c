"""Reports on studies from synthetic records, whose means, spreads and exponents are known; nothing is trained."""

import base64
import csv
import dataclasses
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from rich.console import Console

from efa_addons import cli
from efa_addons.errors import EFAError
from efa_addons.studies import columns, drawing, facts, grouping, measures, pictures, study_report, tables
from efa_addons.studies.record import Profile, Record
from efa_addons.studies.study import Study

PLAIN, EFA = "without EFA", "EFA"
LABELS = {"mace": "MACE", "nequip": "NequIP", "painn": "PaiNN"}
FAILURE = "Traceback\nRuntimeError: <loss> & gradients are NaN"
PAPER = {
    "data": "atoms",
    "label": "network of the paper",
    "source": "arXiv:2412.08541",
    "note": "trained longer",
    "metrics": {"energy_mae": 5.5e-4, "best_loss": 8.4e-4},
}


def errors(energy, force=0.01, size=2):
    """What a record says of an evaluation set of structures of `size` atoms."""
    names = ("energy_mae", "energy_rmse", "energy_mae_per_atom", "energy_rmse_per_atom", "force_mae", "force_rmse")
    values = (energy, 1.5 * energy, energy / size, 1.5 * energy / size, force, 2 * force)
    return {**dict(zip(names, values, strict=True)), "num": 10}


def run(host="mace", variant=PLAIN, seed=0, energy=0.002, **changes):
    """A finished run; settings of EFA as its label says."""
    default = {
        "study": "pairs",
        "size": "quick",
        "data": "atoms",
        "units": "eV",
        "title": "Two atoms",
        "question": "Does a model see past its cutoff?",
        "settings": {
            "model": {"cutoff": 5.0},
            "training": {"num_epochs": 4},
            "efa": None if variant == PLAIN else {"max_degree": 1},
            "command": f"train --seed {seed}",
        },
        "split": {"train": "a" * 64, "test": "b" * 64},
        "versions": {"torch": "2.13.0", host: "1.0"},
        "hardware": "2 cores",
        "status": "finished",
        "num_parameters": 1234,
        "seconds": {"training": 4.0, "total": 9.0},
        "peak_memory": 512.0,
        "metrics": {"test": errors(energy)},
        "curve": curve((4.0, 3.0, 2.0, 1.0)),
    }
    return Record(host=host, host_label=LABELS[host], variant=variant, seed=seed, **{**default, **changes})


def failed(**which):
    return run(**which, status="failed", error=FAILURE, metrics={}, curve=(), seconds={}, split={}, num_parameters=0)


def curve(energies, seconds=1.0):
    """Validation after each epoch of `seconds`; forces are a tenth of the energies."""
    return tuple(
        {"epoch": i, "seconds": seconds * i, "energy_mae": value, "force_mae": value / 10}
        for i, value in enumerate(energies, 1)
    )


def profile(energies, reference, x=None, **scan):
    entry = {"x": "r", "label": "distance (Å)", "align": "none", "analysis": "none", "tail": None, **scan}
    return Profile(entry, tuple(x if x is not None else range(len(energies))), tuple(energies), tuple(reference))


def only(records):
    """Their one table."""
    (section,) = grouping.sections(records)
    (table,) = section.tables
    return table


def cells(table, key):
    """Text of a column, by label of the row."""
    (column,) = [column for column in columns.columns(table) if column.key == key]
    return {row.label: column.text(columns.spread(row, column), table.units) for row in table.rows}


def save(folder, records):
    for record in records:
        path = folder / record.study / record.size / grouping.run_name(record).replace(" ", "-")
        path.mkdir(parents=True)
        record.save(path)
    return folder


def test_cells_are_mean_and_standard_deviation_over_seeds():
    table = only([run(seed=seed, energy=energy) for seed, energy in enumerate((0.001, 0.002, 0.003))])
    assert cells(table, "energy_mae") == {"MACE, without EFA": "2.00 ± 1.00"}  # meV
    assert "seeds of training, all on the same data (seeds: 0, 1, 2)" in tables.notes(table)[0]
    assert cells(table, "energy_mae_per_atom") == {"MACE, without EFA": "1.00 ± 0.50"}
    assert cells(table, "force_mae") == {"MACE, without EFA": "10.0 ± 0.0"}
    assert cells(table, "num_parameters") == {"MACE, without EFA": "1,234"}
    assert cells(only([run()]), "energy_mae") == {"MACE, without EFA": "2.00"}  # one seed has no spread


def test_arbitrary_units_are_plain_numbers():
    table = only([run(energy=5.5e-4, units="arbitrary"), run(energy=6.5e-4, seed=1, units="arbitrary")])
    assert cells(table, "energy_mae") == {"MACE, without EFA": "0.000600 ± 0.000071"}
    assert not any("meV" in line for head in tables.blocks(table)[0].heads for line in head)


@pytest.mark.parametrize(
    ("value", "deviation", "text"),
    [
        (18.31, 0.42, "18.3 ± 0.4"),
        (0.01234, 0.0005, "0.0123 ± 0.0005"),
        (1.5e-7, 2e-8, "(1.50 ± 0.20)e-7"),
        (9.999, 0.1, "10.0 ± 0.1"),
        (2.0, 30.4, "2.0 ± 30.4"),
        (1234.5, float("nan"), "1234" if round(1234.5) == 1234 else "1235"),
        (0.0, 0.0, "0.00 ± 0.00"),
        (float("nan"), float("nan"), "nan"),
    ],
)
def test_numbers_have_three_digits(value, deviation, text):
    assert columns.measured(value, deviation) == text


def test_ratios_are_to_the_same_host_without_efa():
    records = [run(energy=0.004), run(variant=EFA, energy=0.001), run("painn", EFA, energy=0.001)]
    assert cells(only(records), "energy_mae_ratio") == {"MACE, without EFA": "1", "MACE, EFA": "0.25", "PaiNN, EFA": "–"}


def test_rows_stand_in_the_order_of_hosts_and_of_the_study():
    order = ("wide", EFA, PLAIN)
    records = [run(host, variant, variants=order) for variant in sorted(order) for host in ("painn", "mace", "nequip")]
    rows = [row.label for row in only(records).rows]
    assert rows[:4] == ["MACE, without EFA", "MACE, wide", "MACE, EFA", "NequIP, without EFA"] and len(rows) == 9


def test_equal_time_is_when_the_fastest_variant_has_finished():
    """It takes 4 s, one seed longer; the other is past two epochs of 1.5 s then, and its best so far is not its last."""
    fast = [run(seed=seed, seconds={"training": 4.0 + 2 * seed - 1}, curve=curve((4, 2, 3, 1), 1 + seed)) for seed in (0, 1)]
    slow = [
        run(variant=EFA, seed=seed, seconds={"training": 6.0}, curve=curve((3, 5 + seed, 0.5, 0.25), 1.5)) for seed in (0, 1)
    ]
    table = only([*fast, *slow])
    assert columns.wall_limits(table) == {"mace": (PLAIN, 4.0)}
    assert cells(table, "valid_energy_mae") == {"MACE, without EFA": "1000 ± 0", "MACE, EFA": "250 ± 0"}
    assert cells(table, "valid_energy_mae_at_equal_time") == {"MACE, without EFA": "1000 ± 0", "MACE, EFA": "3000 ± 0"}
    assert cells(table, "valid_force_mae_at_equal_time") == {"MACE, without EFA": "100 ± 0", "MACE, EFA": "300 ± 0"}


def test_no_validation_by_then_is_no_value():
    slow = run(variant=EFA, seconds={"training": 40.0}, curve=curve((1, 1), 20.0))
    assert cells(only([run(), slow]), "valid_energy_mae_at_equal_time")["MACE, EFA"] == "–"
    assert measures.best(slow, "energy_mae", until=20.0) == 1 and measures.best(slow, "energy_mae", until=19.0) is None


@pytest.mark.parametrize(("align", "expected"), [("mean", [1, 0, -1]), ("last", [2, 1, 0]), ("none", [5, 4, 3])])
def test_scans_are_aligned_as_they_say(align, expected):
    found = profile([5.0, 5.0, 5.0], [0.0, 1.0, 2.0], align=align)
    np.testing.assert_allclose(measures.aligned(found) - np.array(found.reference), expected)
    np.testing.assert_allclose(measures.deviations(found), np.abs(expected))
    table = only([run(profiles={"scan": found})])
    largest, mean = 1e3 * np.abs(expected).max(), 1e3 * np.abs(expected).mean()
    assert cells(table, "scan_deviation") == {"MACE, without EFA": f"{largest:.0f}"}
    assert cells(table, "scan_mae")["MACE, without EFA"] == f"{mean:.0f}"


def test_unknown_alignment_is_an_error():
    with pytest.raises(EFAError, match="mean, last or none, got 'first'"):
        measures.aligned(profile([1.0], [1.0], align="first"))


def test_barriers_are_first_minus_last_and_their_errors_have_a_sign():
    low, high = (
        profile([0.5, 3.0, 0.25], [1.0, 2.0, 0.0], analysis="barrier"),
        profile([2.0, 0.5], [1.0, 0.0], analysis="barrier"),
    )
    table = only([run(profiles={"scan": low}), run(variant=EFA, profiles={"scan": high})])
    assert cells(table, "scan_barrier_error") == {"MACE, without EFA": "-750", "MACE, EFA": "+500"}


X = np.linspace(2, 12, 31)


@pytest.mark.parametrize("power", [1, 2, 3, 4, 6])
@pytest.mark.parametrize(("offset", "factor"), [(0.0, -14.4), (-1234.5, 0.3)])
def test_exponents_are_found_whatever_the_offset(power, offset, factor):
    energies = offset + factor / X**power
    energies[X < 4] = offset + 100  # outside of the tail
    reference = 7 - 1e-3 / X**1.5  # beside which no curve here is flat
    found = profile(energies, reference, X, analysis="power_law", tail=[4, 12])
    assert measures.exponent(found) == pytest.approx(-power, abs=1e-3)
    assert measures.reference_exponent(found) == pytest.approx(-1.5, abs=1e-3)
    assert measures.fit_tail(found, found.energies)[1] == pytest.approx(offset, abs=1e-4)


@pytest.mark.parametrize("point", [5, 25, 30])
def test_one_bad_point_does_not_decide_an_exponent(point):
    """Least squares would find 2.34, 1.84 and 1.78."""
    energies = -1 / X**2
    energies[point] += 0.3 * np.ptp(energies)
    assert measures.exponent(profile(energies, -1 / X**2, X)) == pytest.approx(-2, abs=0.05)


@pytest.mark.parametrize(
    "energies",
    [np.full(31, -3.0), -3 + 1e-4 * np.sin(X), np.sin(3 * X), 2 * X, np.where(X < 3, 0.0, np.nan)[:3]],
    ids=["constant", "flat beside the reference", "waves", "a line", "few points"],
)
def test_no_exponent_without_a_power_law(energies):
    assert measures.exponent(profile(energies, (-1 / X)[: len(energies)], X[: len(energies)])) is None


def test_exponents_stand_beside_the_references():
    scan = {"analysis": "power_law", "tail": [2, 12]}
    curves = [-1 / X, -1 / X**1.2, np.zeros_like(X)]
    records = [run(variant=EFA, seed=i, profiles={"scan": profile(e, -1 / X, X, **scan)}) for i, e in enumerate(curves)]
    table = only(records)
    assert cells(table, "scan_exponent") == {"MACE, EFA": "-1.10 ± 0.14 (2 of 3)"}
    assert ("scan", "exponent", "(ref. -1.00)") in tables.blocks(table)[1].heads
    assert any("flat" in note for note in tables.notes(table))


def test_a_scan_that_ends_before_its_tail_has_a_picture():
    scan = {"analysis": "power_law", "tail": [20, 30]}
    (section,) = grouping.sections([run(profiles={"scan": profile(-1 / X, -1 / X, X, **scan)})])
    drawn = {what: figure for _, what, figure in pictures.figures(section, LOOKS)}
    assert len(drawn["scan"].axes) == 1


def test_further_sets_are_compared_per_atom_where_sizes_differ():
    alike = {"test": errors(0.01, size=3), "far": errors(0.03, size=3)}
    assert cells(only([run(metrics=alike)]), "far_energy_mae") == {"MACE, without EFA": "30.0"}
    unlike = {"test": errors(0.01, size=3), "test_30": errors(0.3, size=30), "test_6": errors(0.03, size=6)}
    table = only([run(metrics=unlike)])
    assert cells(table, "test_30_energy_mae_per_atom") == {"MACE, without EFA": "10.0"}
    shown = [column.key for column in columns.columns(table) if column.group == columns.ERRORS]
    assert shown[-2:] == ["test_6_energy_mae_per_atom", "test_30_energy_mae_per_atom"]


def test_names_with_numbers_belong_together():
    assert grouping.numbered(["test", "test_132", "test_39", "scan9", "tail_1"]) == {"test": {39: "test_39", 132: "test_132"}}


def test_runs_on_unequal_data_are_refused():
    other = {"train": "a" * 64, "test": "c" * 64}
    for records in (
        [run(), run(seed=1, split=other)],
        [run(), run(variant=EFA, split=other)],
        [run(), run("painn", split=other)],
    ):
        with pytest.raises(EFAError, match="unequal data") as error:
            grouping.sections(records)
        for record in records:
            assert grouping.run_name(record) in str(error.value)
        assert "differ in test:" in str(error.value) and "train" not in str(error.value)


def _changed(record, **settings):
    return dataclasses.replace(record, settings={**record.settings, **settings})


def test_unequal_settings_in_a_row_are_refused():
    with pytest.raises(EFAError, match="unequal settings.* differ in training.num_epochs:"):
        grouping.sections([run(), _changed(run(seed=1), training={"num_epochs": 5})])
    with pytest.raises(EFAError, match="unequal settings.* differ in efa.max_degree"):
        grouping.sections([run(variant=EFA), _changed(run(variant=EFA, seed=1), efa={"max_degree": 0})])


def test_unequal_budgets_of_a_host_are_refused():
    with pytest.raises(EFAError, match="unequal training.*num_epochs"):
        grouping.sections([run(), _changed(run(variant=EFA), training={"num_epochs": 5})])
    grouping.sections([run(), _changed(run("painn"), training={"num_epochs": 5})])  # another host, another budget


def test_failed_runs_refuse_nothing_and_are_counted():
    table = only([run(), failed(seed=1), run(seed=2), run(variant=EFA), failed(host="painn", variant=EFA)])
    (block, _) = tables.blocks(table)
    assert [row[:2] for row in block.rows] == [
        ("MACE, without EFA", "2/3"),
        ("MACE, EFA", "1/3"),  # two have not been made
        ("PaiNN, EFA", "0/3"),
    ]
    assert block.rows[2][2:] == ("–",) * 5
    assert "MACE, without EFA: failed with seed 1." in tables.notes(table)


def test_others_figures_stand_last_and_say_whose_they_are():
    elsewhere = {**PAPER, "data": "clusters", "label": "elsewhere"}
    nested = {"data": "atoms", "label": "local network", "source": "there", "metrics": {"test": {"energy_mae": 0.042}}}
    table = only([run(literature=(PAPER, elsewhere, nested)), run(seed=1, literature=(PAPER, elsewhere, nested))])
    block, budget = tables.blocks(table)
    assert [row[:4] for row in block.rows] == [
        ("MACE, without EFA", "2/2", "2.00 ± 0.00", "1.00 ± 0.00"),
        ("others': network of the paper", "–", "0.550", "–"),
        ("others': local network", "–", "42.0", "–"),
    ]
    assert block.others == 2 and budget.others == 0
    assert "others': network of the paper: arXiv:2412.08541; trained longer; best_loss: 0.00084." in tables.notes(table)


def study():
    """A study of everything: two hosts, two seeds, a scan with a tail, sets of three sizes, others' figures, a failed run."""
    reference = -1 / X
    scan = {"analysis": "power_law", "tail": [4, 12], "align": "last"}
    result = []
    for seed in (0, 1):
        for host in ("mace", "painn"):
            for variant, error in ((PLAIN, 0.5), (EFA, 0.01)):
                sets = {f"test_{size}": errors(error * size, size=size) for size in (39, 132, 314)}
                tail = profile((1 - error) * reference + seed * error * 0.01, reference, X, **scan)
                result.append(
                    run(
                        host,
                        variant,
                        seed,
                        metrics={"test": errors(error), **sets},
                        profiles={"pull": tail},
                        literature=(PAPER,),
                    )
                )
    result[-1] = failed(host="painn", variant=EFA, seed=1)
    return result


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The report on it, and on another study with two data sets."""
    folder = tmp_path_factory.mktemp("runs")
    other = {"study": "chains", "title": "Chains", "curve": ()}
    chains = [run(data=data, variant=variant, **other) for data in ("chain_5", "chain_7") for variant in (PLAIN, EFA)]
    save(folder, [*study(), *chains])
    return folder, study_report.write(folder)


def test_everything_is_written_and_named(made):
    folder, paths = made
    assert [path.name for path in paths[:3]] == ["report.md", "table.csv", "report.html"]
    assert sorted(path.name for path in paths[3:]) == sorted(
        [
            "chains-quick-chain-test-by-number.png",
            *(f"pairs-quick-atoms-{what}.png" for what in ("pull", "test-by-number", "epochs", "seconds")),
        ]
    )
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths[3:])
    assert {path.parent for path in paths[3:]} == {folder / "pictures"}


def test_markdown_has_a_section_per_study_and_all_pictures(made):
    folder, paths = made
    text = (folder / "report.md").read_text(encoding="utf-8")
    heads = re.findall(r"^##? .*", text, re.MULTILINE)
    assert heads == ["# Report", "## chains (quick): Chains", "## pairs (quick): Two atoms"]
    assert re.findall(r"!\[.*\]\((.*)\)", text) == [f"pictures/{path.name}" for path in paths[3:]]
    assert "| PaiNN, EFA | 1/2 | 10.0 | 5.00 | 10.0 | 0.02 | 1 | 10.0 | 10.0 | 10.0 |" in text
    assert "painn/EFA/seed-1:\n\n```\n" + FAILURE in text
    assert "| model | seeds | energy MAE (meV) | energy MAE (meV/atom) |" in text


def test_csv_holds_numbers_in_the_units_of_the_records(made):
    with (made[0] / "table.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["study"], row["data"]) for row in rows[:4]] == [("chains", "chain_5")] * 2 + [("chains", "chain_7")] * 2
    pairs = {row["label"]: row for row in rows if row["study"] == "pairs"}
    assert list(pairs) == [
        "MACE, without EFA",
        "MACE, EFA",
        "PaiNN, without EFA",
        "PaiNN, EFA",
        "others': network of the paper",
    ]
    row = pairs["MACE, EFA"]
    assert (row["seeds_finished"], row["seeds_all"], row["units"]) == ("2", "2", "eV")
    assert float(row["energy_mae"]) == pytest.approx(0.01) and float(row["energy_mae_std"]) == pytest.approx(0)
    assert float(row["pull_exponent"]) == pytest.approx(-1, abs=1e-3) == float(row["pull_exponent_reference"])
    assert float(row["test_314_force_rmse"]) == 0.02 and float(row["peak_memory"]) == 512
    assert pairs["PaiNN, EFA"]["seeds_finished"] == "1" and pairs["PaiNN, EFA"]["energy_mae_std"] == ""
    assert pairs["others': network of the paper"]["source"] == PAPER["source"]
    assert float(pairs["others': network of the paper"]["energy_mae"]) == 5.5e-4


class Page(HTMLParser):
    """What a page would load, what it links to, and whether its tags are closed."""

    def __init__(self, text):
        super().__init__()
        self.images, self.links, self.names, self.open = [], [], set(), []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.names.add(tag)
        self.images += [value for name, value in attributes if name in ("src", "srcset", "data", "poster")]
        self.links += [value for name, value in attributes if name == "href"]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_holds_every_picture_and_loads_nothing(made):
    folder, paths = made
    text = (folder / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    embedded = [base64.b64decode(value.removeprefix("data:image/png;base64,")) for value in page.images]
    assert embedded == [path.read_bytes() for path in paths[3:]]
    assert page.links == ["#s0", "#s1"] and not page.open
    assert not page.names & {"script", "link", "iframe", "object", "base"}
    assert "url(" not in text and "@import" not in text and "http:" not in text and "https:" not in text


def test_the_page_has_settings_versions_runs_and_failures(made):
    text = (made[0] / "report.html").read_text(encoding="utf-8")
    for part in ("training.num_epochs", "efa.max_degree: 1", "2.13.0", "2 cores", "train --seed 1", "Does a model see"):
        assert part in text
    assert "RuntimeError: &lt;loss&gt; &amp; gradients are NaN" in text and "<loss>" not in text
    assert len(re.findall(r"<td class=text>atoms/\w+/[\w ]+/seed-\d</td><td class=text>(?:finished|failed)</td>", text)) == 8
    assert text.count("<tr class=others>") == 1


def test_a_study_in_which_all_failed_has_a_report(tmp_path, capsys):
    study_report.write(save(tmp_path, [failed(), failed(seed=1)]))
    assert "0/2" in capsys.readouterr().out
    assert FAILURE in (tmp_path / "report.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("width", [80, 100, 300])
def test_printed_tables_fit_the_terminal(width):
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    study_report.show(grouping.sections(study()), console)
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= width and "…" not in text
    for part in (
        "MACE, without EFA",
        "1/2",
        "equal time",
        "test_314",
        "(ref. -1.00)",
        "failed: atoms/painn/EFA/seed-1: RuntimeError",
    ):
        assert part in text


def test_a_folder_without_runs_says_what_to_do(tmp_path):
    with pytest.raises(EFAError, match="no run.json below .*efa-addons study"):
        study_report.write(tmp_path)
    with pytest.raises(EFAError, match="not a folder"):
        study_report.write(tmp_path / "missing")


def test_the_same_run_twice_is_refused(tmp_path):
    save(tmp_path / "one", [run()])
    save(tmp_path / "two", [run()])
    with pytest.raises(EFAError, match=r"two.*run.json and .*one.*run.json are the same run \(atoms/mace/without EFA/seed-0\)"):
        study_report.write(tmp_path)


def test_the_order_of_variants_survives_the_file_and_older_files_have_none(tmp_path):
    path = run(variants=(EFA, PLAIN)).save(tmp_path)
    assert Record.read(path) == run(variants=(EFA, PLAIN))
    content = json.loads(path.read_text())
    del content["variants"]
    path.write_text(json.dumps(content))
    assert Record.read(path).variants == ()


def test_the_command(tmp_path, capsys):
    assert cli.main(["report", str(tmp_path)]) == 2
    assert "no run.json" in capsys.readouterr().err
    assert cli.main(["report", str(save(tmp_path, [run(curve=())]))]) == 0
    assert str(tmp_path / "report.html") in capsys.readouterr().out


LOOKS = drawing.looks([PLAIN, EFA])


def _bands(axes):
    """Lowest and highest y of each band."""
    return [
        (vertices[:, 1].min(), vertices[:, 1].max()) for band in axes.collections for vertices in [band.get_paths()[0].vertices]
    ]


def test_learning_curves_are_means_in_bands():
    records = [run(seed=seed, curve=curve((4 + seed, 2 + seed), 1 + seed)) for seed in (0, 1, 2)]
    figure = pictures.learning_curves(only([*records, run("painn", EFA)]), "seconds", LOOKS)
    energy, painn, force, _ = figure.axes
    assert [axes.get_title() for axes in (energy, painn)] == ["MACE", "PaiNN"]
    np.testing.assert_allclose(energy.lines[0].get_xydata(), [[2, 5], [4, 3]])
    np.testing.assert_allclose(force.lines[0].get_ydata(), [0.5, 0.3])
    assert _bands(energy) == [(2, 6)] and energy.get_yscale() == "log"
    assert energy.lines[1].get_label() == "equal time" and list(energy.lines[1].get_xdata()) == [4, 4]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [PLAIN, "equal time", EFA]


def test_scans_show_the_reference_in_black_and_aligned_means():
    records = [run(seed=seed, profiles={"scan": profile([5 + seed, 5, 5], [0, 1, 2], align="last")}) for seed in (0, 1)]
    figure = pictures.scan(only(records), "scan", LOOKS)
    (axes,) = figure.axes
    reference, model = axes.lines
    assert reference.get_color() == "black" and list(reference.get_ydata()) == [-2, -1, 0]
    np.testing.assert_allclose(model.get_ydata(), [0.5, 0, 0])
    assert _bands(axes) == [(0, 1)]


def test_tails_are_shown_in_double_logarithms():
    table = only(study())
    tail = pictures.scan(table, "pull", LOOKS).axes[2]
    reference, plain, efa = tail.lines
    np.testing.assert_allclose(reference.get_ydata(), 1 / X[X >= 4], rtol=1e-6)
    np.testing.assert_allclose(plain.get_ydata(), 0.5 / X[X >= 4], rtol=1e-5)
    np.testing.assert_allclose(efa.get_ydata(), 0.99 / X[X >= 4], rtol=1e-5)
    assert tail.get_xscale() == tail.get_yscale() == "log"


def test_errors_are_drawn_over_the_number_of_atoms():
    figures = {what: figure for _, what, figure in pictures.figures(grouping.sections(study())[0], LOOKS)}
    energy = figures["test-by-number"].axes[0]
    np.testing.assert_allclose(energy.lines[0].get_xydata(), [[39, 0.5], [132, 0.5], [314, 0.5]])
    colors = {line.get_label(): line.get_color() for line in energy.lines}
    assert colors == {PLAIN: LOOKS[PLAIN]["color"], EFA: LOOKS[EFA]["color"]}


@pytest.mark.parametrize("scans", [("path_1",), ("path_2",), ("path_1", "path_2")])
def test_numbered_sets_of_which_some_are_scans_are_drawn_by_what_all_have(scans):
    sets = {name: errors(0.1 * number) for number, name in enumerate(("path_1", "path_2"), 1)}
    curves = {name: profile([0.0, 1.0], [0.0, 0.5]) for name in scans}
    lacking = run(seed=1, metrics={"test": errors(0.1)})  # of an evaluation that had no such set
    records = [run(metrics={"test": errors(0.1), **sets}, profiles=curves), lacking]
    figures = {what: figure for _, what, figure in pictures.figures(grouping.sections(records)[0], LOOKS)}
    first = figures["path-by-number"].axes[0]
    label, values = ("largest deviation (eV)", (0.5, 0.5)) if len(scans) == 2 else ("energy MAE per atom (eV)", (0.05, 0.1))
    assert first.get_ylabel() == label
    np.testing.assert_allclose(first.lines[0].get_xydata(), [*zip((1, 2), values, strict=True)])


def test_a_host_whose_runs_all_failed_leaves_its_panels_empty():
    drawn = list(pictures.figures(grouping.sections([*study(), failed(host="nequip")])[0], LOOKS))
    assert [what for _, what, _ in drawn] == ["pull", "test-by-number", "epochs", "seconds"]
    for _, _, figure in drawn:
        panel = figure.axes[1]
        assert panel.get_title() == "NequIP" and {line.get_label() for line in panel.lines} <= {"reference"}


def test_every_variant_has_a_look_of_its_own():
    looks = drawing.looks([f"variant {i}" for i in range(20)])
    assert len({(look["color"], look["marker"], str(look["linestyle"])) for look in looks.values()}) == 20


def test_the_first_two_looks_are_those_of_without_and_with_efa():
    control = _changed(run(variant="control"), efa={"emulate": True})
    wide = _changed(run(variant="wide"), efa=None)
    assert study_report._order([control, run(variant=EFA), wide]) == [PLAIN, EFA, "control", "wide"]


DYNAMICS = {"time": [0.0, 5.0, 10.0], "energy": [0.0, 0.001, 0.004], "spread": 0.0005, "temperature": 290.0, "fell_apart": None}


def test_dynamics_are_a_drift_and_a_picture():
    records = [
        run(dynamics={**DYNAMICS, "drift": -0.0003}),
        run(variant=EFA, dynamics={**DYNAMICS, "drift": 2e-5}),
        run(seed=1),
    ]
    table = only(records)
    assert cells(table, "dynamics_drift") == {f"MACE, {PLAIN}": "-0.300 (1 of 2)", "MACE, EFA": "+0.0200"}
    assert "dynamics_fell_apart" not in {column.key for column in columns.columns(table)}
    figures = {what: figure for _, what, figure in pictures.figures(grouping.sections(records)[0], LOOKS)}
    plain, efa = figures["dynamics"].axes[0].lines
    np.testing.assert_allclose(plain.get_xydata(), [[0, 0], [5, 0.001], [10, 0.004]])
    broken = only([run(dynamics={**DYNAMICS, "drift": 1.0, "fell_apart": 2.5})])
    assert cells(broken, "dynamics_fell_apart") == {f"MACE, {PLAIN}": "2.50"}


def test_cost_is_a_column_for_each_size_and_a_picture():
    costs = [{"num_atoms": [10, 100], "seconds": [0.1 + seed, 2.0], "memory": [5.0, 50.0]} for seed in (0, 1)]
    records = [run(seed=seed, cost=of) for seed, of in enumerate(costs)]
    table = only(records)
    keys = [column.key for column in columns.columns(table) if column.group == columns.COST]
    assert keys == ["seconds_10_atoms", "seconds_100_atoms", "memory_10_atoms", "memory_100_atoms"]
    assert cells(table, "seconds_10_atoms") == {f"MACE, {PLAIN}": "0.600 ± 0.707"}
    figures = {what: figure for _, what, figure in pictures.figures(grouping.sections(records)[0], LOOKS)}
    seconds, memory = figures["cost"].axes
    np.testing.assert_allclose(seconds.lines[0].get_xydata(), [[10, 0.6], [100, 2.0]])
    np.testing.assert_allclose(memory.lines[0].get_ydata(), [5, 50])


def test_a_scan_that_is_called_as_another_picture_has_a_file_of_its_own(tmp_path):
    records = [run(metrics={"epochs": errors(0.05)}, profiles={"epochs": profile((1.0, 2.0), (1.1, 2.1))})]
    (section,) = grouping.sections(records)
    (drawn,) = pictures.draw(tmp_path, section, LOOKS).values()
    assert len({*drawn}) == len(drawn) == 3 and {path.name for path in drawn} == {path.name for path in tmp_path.iterdir()}


def test_others_figures_of_a_scan_have_a_column():
    metrics = {"test": errors(0.002), "scan": errors(0.05)}
    row = {"label": "paper", "metrics": {"scan": {"energy_mae": 0.039}}}
    table = only([run(metrics=metrics, profiles={"scan": profile((1.0, 2.0), (1.1, 2.1), align="mean")}, literature=(row,))])
    assert cells(table, "scan_energy_mae") == {"MACE, without EFA": "50.0"}
    (block,) = [block for block in tables.blocks(table) if block.title == columns.SCANS]
    assert block.others == 1 and "39.0" in block.rows[-1]
    assert any("shifted onto the reference" in note for note in tables.notes(table))


def test_every_paper_figure_of_the_studies_that_ship_is_of_a_kind_that_has_a_column():
    for path in sorted((Path(__file__).parents[2] / "configs/studies").glob("*.yaml")):
        for entry in Study.load(path).literature:
            for key in tables._others(entry):
                assert key in columns.METRICS or key.endswith("energy_mae"), (path.stem, key)


def test_runs_of_unequal_versions_are_refused_and_other_machines_are_said():
    one, other = run(versions={"efa_addons": "1"}), run(versions={"efa_addons": "2"}, seed=1)
    with pytest.raises(EFAError, match="unequal versions.*efa_addons"):
        only([one, other])
    table = only([run(), run(seed=1, hardware="4 cores")])
    assert any("MACE are of different machines" in note and "2 cores / 4 cores" in note for note in tables.notes(table))
    assert not any("different machines" in note for note in tables.notes(only([run(), run(seed=1)])))


def test_an_energy_that_is_not_finite_has_no_power_law():
    assert measures.power_law((1.0, 2.0, 3.0, 4.0, 5.0), (1.0, 0.5, np.inf, 0.2, 0.1)) is None


def test_options_that_are_all_defaults_are_said():
    settings = [{**run().settings, "efa": efa} for efa in ({}, {"max_degree": 1})]
    (section,) = grouping.sections([run(settings=settings[0], variant="a"), run(settings=settings[1], variant="b")])
    assert ["MACE, a", "efa: defaults"] in facts.settings(section)[1]
