"""MACE's own tests: on stock MACE, with our patch, and with EFA in their models.

    python tests/hosts/mace/upstream/upstream_run.py

takes the tests from the source distribution of mace-torch, copies the installed package beside them, and runs pytest once for
each form:

    stock     MACE as it is installed
    patched   with patches/mace-torch-<version>.diff
    zero      with EFA blocks that add zero in every ScaleShiftMACE that a test constructs or trains
    random    with EFA blocks of random weights there

It fails where an outcome, or the use of EFA, is not what `upstream_table.py` says, and where the page of
the documentation is not what `--docs` writes. Nothing is downloaded but the source distribution, by pip.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path

from upstream_table import ALIKE, LITERAL, MACE_VERSION, REFUSED, ROUGH, ROWS, SKIPPED, Row, assign, selected

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[3]
PATCH = ROOT / "patches" / f"mace-torch-{MACE_VERSION}.diff"
DOCS = ROOT / "docs" / "hosts" / "mace-upstream-tests.md"
WITH_EFA = ("zero", "random")
FORMS = ("stock", "patched", *WITH_EFA)
NOWHERE = "http://127.0.0.1:9"  # a proxy that refuses: what would download fails at once, with and without a network


def fetch(folder: Path, distribution: Path | None = None) -> Path:
    """Downloads (or takes) the source distribution; returns the folder of its tests, unpacked below `folder`."""
    if version("mace-torch") != MACE_VERSION:
        raise SystemExit(
            f"mace-torch {version('mace-torch')} is installed; the tests and the patch are those of {MACE_VERSION}."
        )
    if distribution is None:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "mace-torch"]
        subprocess.run([*pip, "--dest", str(folder), f"mace-torch=={MACE_VERSION}"], check=True)
        distribution = folder / f"mace_torch-{MACE_VERSION}.tar.gz"
    with tarfile.open(distribution) as archive:
        archive.extractall(folder, filter="data")
    return folder / f"mace_torch-{MACE_VERSION}" / "tests"


def prepare(form: str, folder: Path, tests: Path) -> None:
    """folder/tests and folder/mace, the latter patched in the form `patched`."""
    import mace

    shutil.copytree(tests, folder / "tests")
    shutil.copytree(Path(mace.__file__).parent, folder / "mace", ignore=shutil.ignore_patterns("__pycache__"))
    if form == "patched":
        before = (folder / "mace" / "modules" / "models.py").read_text()
        subprocess.run(["git", "apply", str(PATCH)], cwd=folder, check=True)
        if (folder / "mace" / "modules" / "models.py").read_text() == before:
            raise SystemExit(f"{PATCH} changed nothing in {folder}")


def run(form: str, folder: Path, quick: bool) -> dict:
    """Runs the tests of a prepared folder in one process of pytest; returns what `upstream_record.py` has written."""
    (folder / "notes").write_text("")
    (folder / "home").mkdir()
    paths = [folder, HERE, *([HERE / "everywhere"] if form in WITH_EFA else [])]
    environment = {name: value for name, value in os.environ.items() if name != "CI"}  # it makes some tests skip themselves
    environment |= {
        "PYTHONPATH": os.pathsep.join([*map(str, paths), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "EFA_UPSTREAM": form,
        "EFA_UPSTREAM_QUICK": str(int(quick)),
        "EFA_UPSTREAM_NOTES": str(folder / "notes"),
        "EFA_UPSTREAM_RESULTS": str(folder / "results.json"),
        "HOME": str(folder / "home"),
        "XDG_CACHE_HOME": str(folder / "home" / "cache"),
        **dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), NOWHERE),
    }
    files = sorted({"tests/" + row.tests.partition("::")[0] for row in ROWS if row.quick}) if quick else ["tests"]
    pytest = [sys.executable, "-m", "pytest", "-q", "-p", "upstream_record", "-p", "no:cacheprovider", "--tb=short", *files]
    with (folder / "log").open("w") as log:
        done = subprocess.run(pytest, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT)
    if done.returncode not in (0, 1):
        raise SystemExit(f"pytest could not run in the form {form}:\n{(folder / 'log').read_text()[-4000:]}")
    return json.loads((folder / "results.json").read_text())


def compare(rows: Mapping[str, Row], results: Mapping[str, Mapping[str, dict]]) -> list[str]:
    """What is not as the rows say.

    Args:
        rows: of the tests that were to run.
        results: form -> test -> what `upstream_record.py` has written.
    """
    problems = []
    for test, row in rows.items():
        for form, tests in results.items():
            found = tests.get(test, {"outcome": "not run", "notes": []})
            outcome, why = found["outcome"], found.get("why", "")
            if outcome not in expected(row, form) or (outcome == "failed" and row.kind == REFUSED and "EFAError" not in why):
                problems.append(f"{test} {outcome} in the form {form}, the table says: {row.kind}. {why}")
            if form in WITH_EFA and outcome in ("passed", "failed"):
                has_efa = bool(found["notes"])
                if has_efa != (row.kind in (ALIKE, LITERAL, ROUGH, REFUSED)):
                    problems.append(f"{test} has {'' if has_efa else 'no '}EFA in its models, the table says: {row.kind}.")
    return problems


def expected(row: Row, form: str) -> tuple[str, ...]:
    """The outcomes that a row allows in a form."""
    if row.kind == SKIPPED:
        return ("skipped",)
    if row.kind == ROUGH and form == "random":
        return ("passed", "failed")
    failing = {LITERAL: ("random",), REFUSED: WITH_EFA}.get(row.kind, ())
    return ("failed",) if form in failing else ("passed",)


def to_markdown() -> str:
    """The table as a page of the documentation."""
    lines = [
        "# MACE's own tests and EFA",
        "",
        f"Which of the unit tests of mace-torch {MACE_VERSION} run with EFA in their models, and why others do not.",
        "`tox -e mace-upstream` holds this table against what happens; the page is written by",
        "`python tests/hosts/mace/upstream/upstream_run.py --docs`.",
        "",
        "The tests run on stock MACE, on MACE with [our patch](../../patches/README.md), and with EFA in every ScaleShiftMACE",
        "that a test constructs or trains: blocks that add zero and stay so, then blocks of random weights that are trained.",
        "Nearly all of these tests are periodic, which EFA refuses; the test run lets periodic structures through, so that",
        "every line is run.",
        "",
    ]
    kinds = {kind: sum(row.number for row in ROWS if row.kind == kind) for kind in dict.fromkeys(row.kind for row in ROWS)}
    lines += ["| | tests |", "|---|---|", *(f"| {kind} | {number} |" for kind, number in kinds.items()), ""]
    lines += ["| tests | number | with EFA? | reason |", "|---|---|---|---|"]
    lines += [f"| `{row.tests}` | {row.number} | {row.kind} | {row.reason} |" for row in ROWS]
    return "\n".join(lines) + "\n"


def check(forms: Iterable[str], quick: bool, folder: Path, distribution: Path | None = None) -> list[str]:
    """Fetches, runs and compares; returns the problems."""
    tests = fetch(folder, distribution)
    results: dict[str, dict[str, dict]] = {}
    problems = [] if DOCS.read_text() == to_markdown() else [f"{DOCS} is not what --docs writes"]
    rows: dict[str, Row] = {}
    for form in forms:
        work = folder / form
        work.mkdir()
        prepare(form, work, tests)
        start = time.monotonic()
        found = run(form, work, quick)
        results[form] = found["tests"]
        outcomes = [result["outcome"] for result in results[form].values()]
        counts = ", ".join(f"{outcomes.count(outcome)} {outcome}" for outcome in sorted(set(outcomes)))
        print(f"{form:<8} {counts} in {time.monotonic() - start:.0f} s", flush=True)
        assigned, wrong = assign(found["collected"])
        problems += [] if quick else [problem for problem in wrong if problem not in problems]
        rows |= selected(assigned, quick)
    return problems + compare(rows, results)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=FORMS, help="default: all")
    parser.add_argument("--quick", action="store_true", help="the quick subset only")
    parser.add_argument("--distribution", type=Path, help="a mace_torch-….tar.gz at hand, instead of downloading it")
    parser.add_argument("--folder", type=Path, help="an empty folder for copies, logs and results (default: temporary)")
    parser.add_argument("--docs", action="store_true", help=f"write {DOCS.relative_to(ROOT)} and stop")
    args = parser.parse_args()
    if args.docs:
        DOCS.write_text(to_markdown())
        return 0
    with tempfile.TemporaryDirectory(prefix="mace-upstream-") as temporary:
        problems = check(args.forms, args.quick, args.folder or Path(temporary), args.distribution)
    print("\n".join(problems) or "every outcome is as the table says")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
