"""The README's code runs, its tables are the committed results, and notebooks execute."""

import importlib.metadata
import json
import pathlib
import re
import subprocess
import sys

import nbformat
import pytest
from nbclient import NotebookClient

import jaxmaml
from benchmarks import calibration, differential, memory, precision, report
from benchmarks.adaptation import navigation_report
from benchmarks.common import reporting
from benchmarks.fields import comparison
from benchmarks.speed import tables
from benchmarks.streams import comparison as streams
from tests import test_structure
from tests.conftest import REPOSITORY

README = (REPOSITORY / "README.md").read_text()
RESULTS = REPOSITORY / "benchmarks" / "results"
# A page, and the runs that one of its tables is of.
SPEED_TABLES = (
    ("README.md", "meta_step"),
    ("README.md", *("meta_step_gpu" + run for run in ("", "_more", "_compiled", "_five_steps", "_card"))),
    ("benchmarks/README.md", "meta_step_compiled"),
    ("benchmarks/README.md", "meta_step_xeon"),
)
MEMORY_TABLES = {
    "inner steps: MLP 4 x 128, 256 points, 4 tasks": (10, 100, 1000),
    "inner steps: MLP 4 x 128, inner Adam": (10, 100, 1000),
    "inner steps: Conv4-32, 84 x 84, 1 task": (10, 100, 1000),
    "tasks: Conv4-64, Omniglot 5-way 1-shot, 1 inner step": (1, 64, 1024),
}


@pytest.mark.slow
@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_code_blocks_run(page, quick_compiles):
    blocks = re.findall(r"```python\n(.*?)```", (REPOSITORY / page).read_text(), re.DOTALL)
    assert blocks
    namespace = {}
    for block in blocks:  # Later blocks may build on earlier ones.
        exec(compile(block, page, "exec"), namespace)


@pytest.mark.parametrize(
    ("page", "result", "setting", "steps"),
    [
        ("README.md", "sinusoid", "5-shot", (0, 1, 5, 10)),
        ("README.md", "maml-omniglot-5w1s", "1 query a class", (0, 1, 2, 5, 10, 20)),
        ("README.md", "maml-mini-imagenet-5w1s", "1 query a class", (0, 1, 2, 5, 10, 20)),
        ("benchmarks/README.md", "omniglot", "1 query a class", (0, 1, 3, 10)),
    ],
)
def test_tables_are_the_committed_results(page, result, setting, steps):
    stored = json.loads((RESULTS / "adaptation" / f"step_counts_{result}.json").read_text())
    assert reporting.markdown(stored, setting, steps) in (REPOSITORY / page).read_text()
    assert (RESULTS / "adaptation" / f"step_counts_{result}.png").exists()


def test_the_field_tables_are_the_committed_results():
    for path in sorted((RESULTS / "adaptation").glob("step_counts_fields*.json")):
        assert comparison.markdown(json.loads(path.read_text())) in README
        assert path.with_suffix(".png").exists()


def test_the_stream_table_is_the_committed_result():
    stored = json.loads((RESULTS / "adaptation" / "step_counts_streams.json").read_text())
    assert streams.markdown(stored).strip() in README


def test_the_navigation_table_is_the_committed_result():
    table = navigation_report.markdown(json.loads((RESULTS / "adaptation" / "step_counts_navigation.json").read_text()))
    for page in ("README.md", "benchmarks/README.md"):
        assert table in (REPOSITORY / page).read_text()
    assert (RESULTS / "adaptation" / "step_counts_navigation.png").exists()


def test_the_family_tables_are_the_committed_results():
    stored = json.loads((RESULTS / "adaptation" / "step_counts_sinusoid_algorithms.json").read_text())
    assert reporting.markdown(stored, "5-shot", (0, 1, 5, 10)) in README
    assert {row["normalisation"] for row in stored["settings"]["5-shot"].values()} == {"none"}
    assert (RESULTS / "adaptation" / "step_counts_sinusoid_algorithms.png").exists()


def test_the_speed_and_memory_tables_are_the_committed_results():
    for page, *names in SPEED_TABLES:
        results = [json.loads((RESULTS / "speed" / f"{name}.json").read_text()) for name in names]
        assert tables.markdown(*results) in (REPOSITORY / page).read_text()
    pieces = [
        json.loads((RESULTS / "speed" / f"{name}.json").read_text())
        for name in ("meta_step_pieces", "meta_step_pieces_sinusoids")
    ]
    assert tables.variants(*pieces) in (REPOSITORY / "benchmarks/README.md").read_text()
    studies = json.loads((RESULTS / "memory" / "memory.json").read_text())["studies"]
    for title, sizes in MEMORY_TABLES.items():
        assert memory.markdown(studies[title], sizes) in README
    assert (RESULTS / "memory" / "memory.png").exists()


def test_the_precision_table_is_the_committed_result():
    assert precision.markdown(json.loads((RESULTS / "precision" / "precision.json").read_text())["problems"]) in README
    assert (RESULTS / "precision" / "precision.png").exists()


def test_the_differential_table_is_the_committed_results():
    results = [
        json.loads(path.read_text()) for path in sorted((RESULTS / "differential").glob("differential_jax_*.json"))
    ]
    assert len(results) == 2
    assert not any(result["totals"]["wrong"] for result in results)
    for page in ("README.md", "benchmarks/README.md"):
        assert differential.markdown(*results) in (REPOSITORY / page).read_text()


def test_the_calibration_tables_are_the_committed_results():
    page = (REPOSITORY / "benchmarks" / "README.md").read_text()
    for rows in json.loads((RESULTS / "calibration" / "calibration.json").read_text())["shots"].values():
        assert calibration.markdown(rows) in page
    assert (RESULTS / "calibration" / "calibration.png").exists()


def test_the_report_is_of_the_committed_results():
    results = report.read(RESULTS / "papers")
    assert report.page(results) == (REPOSITORY / "benchmarks" / "REPORT.md").read_text()
    assert report.table(results) in README
    assert (RESULTS / "papers" / report.PICTURE).exists()


def test_contributing_names_every_package():
    """Its table has the modules and packages that there are, in the order of their imports."""
    rows = re.findall(r"^\| (`.*?) \|", (REPOSITORY / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    named = [name.rstrip("/") for row in rows for name in re.findall(r"`([\w/]+)`", row)]
    package = pathlib.Path(jaxmaml.__file__).parent
    paths = [path for path in package.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()]
    assert {*named} == {path.stem for path in paths if path.stem != "__init__"} | {"execution/rewriting"}
    groups = [test_structure._group(name.replace("/", ".") + "." * ("/" in name)) for name in named]
    assert list(dict.fromkeys(groups)) == list(test_structure.ORDER)


def test_the_citation_is_of_this_version():
    assert f"\nversion: {jaxmaml.__version__}\n" in (REPOSITORY / "CITATION.cff").read_text()


def test_links_to_files_lead_somewhere():
    for page in REPOSITORY.glob("*.md"):
        for target in re.findall(r"\]\((?!http)([^)#]+)", page.read_text()):
            assert (REPOSITORY / target).exists(), f"{page.name}: {target}"


TRAINING_STEPS = re.compile(r"\b(num_steps=|NUM_STEPS = )(\d[\d_]{2,})")


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted((REPOSITORY / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebook_executes(path, tmp_path):
    """With a tenth of the training steps, which are most of its time."""
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        cell.source = TRAINING_STEPS.sub(lambda found: found[1] + str(int(found[2]) // 10), cell.source)
    NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    figures = [o for cell in notebook.cells for o in cell.get("outputs", []) if "image/png" in o.get("data", {})]
    assert len(figures) >= 3


def test_the_package_says_what_it_is():
    metadata = importlib.metadata.metadata("jaxmaml")
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Version"] == jaxmaml.__version__
    assert {"data", "test", "benchmarks", "notebooks", "peers"} <= set(metadata.get_all("Provides-Extra"))
    assert f"## {metadata['Version']}" in (REPOSITORY / "CHANGELOG.md").read_text()
    assert (pathlib.Path(jaxmaml.__file__).parent / "py.typed").exists()


def test_importing_needs_neither_pillow_nor_matplotlib():
    """Readers and figures are extras: the core must not import them."""
    code = "import sys, jaxmaml; print([m for m in ('PIL', 'pooch', 'matplotlib', 'tyro') if m in sys.modules])"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"
