"""The shape of the code: who may touch what."""

import ast
import graphlib
import re

import pytest

import jaxmaml
from tests import family
from tests.conftest import REPOSITORY

INTERNALS = re.compile(
    r"jax\.(core|extend|interpreters|_src|config)\b|from jax import (core|extend|config)|primitive\.name"
)


@pytest.mark.parametrize("package", ["jaxmaml", "benchmarks"])
def test_one_module_touches_jaxs_internals(package):
    paths = [path for path in (REPOSITORY / package).rglob("*.py") if path.name != "jax_internals.py"]
    found = {str(path): INTERNALS.findall(path.read_text()) for path in paths if INTERNALS.search(path.read_text())}
    assert not found


# Packages and groups of modules, each of which imports only from itself and from earlier ones.
SHARED = ("types", "jax_internals", "checks", "keys", "parameter_selection", "options", "losses")
NAMESPACES = ("metrics", "objectives", "starts", "supports")
ORDER = (
    "shared",
    "execution.rewriting",
    "execution",
    "rules",
    "namespaces",
    "core",
    "learners",
    "training",
    "nn",
    "rl",
    "tasks",
)
# Read from top to bottom, core is the algorithm: each module imports only later ones.
CORE = ("learner", "meta_loss", "meta_gradients", "inner_loop", "inner_gradient")


def _modules() -> dict[str, set[str]]:
    """Every module of the package below `jaxmaml`, with the modules that it imports, as `"core.learner"`."""
    root = REPOSITORY / "jaxmaml"
    paths = {".".join(path.relative_to(root).with_suffix("").parts): path for path in root.rglob("*.py")}
    modules = {}
    for name, path in paths.items():
        imported = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "jaxmaml":
                source = node.module.removeprefix("jaxmaml").removeprefix(".")
                for alias in node.names:
                    below = f"{source}.{alias.name}".removeprefix(".")
                    imported.add(
                        next(m for m in (below, f"{below}.__init__", source, f"{source}.__init__") if m in paths)
                    )
        modules[name] = imported
    return {name: imported for name, imported in modules.items() if name != "__init__"}


def _group(module: str) -> str:
    if module.split(".")[0] in SHARED:
        return "shared"
    if module in NAMESPACES:
        return "namespaces"
    return "execution.rewriting" if module.startswith("execution.rewriting.") else module.split(".")[0]


def test_every_module_belongs_to_a_group():
    assert {_group(module) for module in _modules()} == set(ORDER)


def test_imports_go_one_way_between_packages():
    wrong = [
        f"{module} imports {other}"
        for module, imported in _modules().items()
        for other in imported
        if ORDER.index(_group(other)) > ORDER.index(_group(module))
    ]
    assert not wrong


@pytest.mark.parametrize("order", [CORE[::-1], SHARED], ids=["core", "shared"])
def test_imports_go_one_way_within(order):
    package = "core." if "learner" in order else ""
    modules = _modules()
    for place, name in enumerate(order):
        later = {f"{package}{other}" for other in order[place + 1 :]}
        of_name = [m for m in modules if m == f"{package}{name}" or m.startswith(f"{package}{name}.")]
        imported = {other.removesuffix(".__init__") for module in of_name for other in modules[module]}
        assert of_name
        assert not imported & later, name


def test_execution_is_wrapped_round_core_in_one_place():
    inside = {module: imported for module, imported in _modules().items() if module.startswith("core.")}
    found = {(module, other) for module, imported in inside.items() for other in imported if "execution" in other}
    assert found == {("core.learner", "execution.executor")}


def test_learners_import_no_sibling():
    learners = {module: imported for module, imported in _modules().items() if module.startswith("learners.")}
    del learners["learners.__init__"]
    assert not [module for module, imported in learners.items() if any(o.startswith("learners.") for o in imported)]


def test_no_module_imports_the_whole_package():
    """Which would hide what it uses; examples in docstrings may."""
    for path in (REPOSITORY / "jaxmaml").rglob("*.py"):
        imports = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Import)]
        assert not [alias for node in imports for alias in node.names if alias.name.startswith("jaxmaml")], path


def test_every_learner_is_exported_and_conforms():
    """To be exported is to be in `tests.family.FACTORIES`, of which the conformance tests are."""
    names = {path.stem for path in (REPOSITORY / "jaxmaml" / "learners").glob("*.py")} - {"__init__"}
    assert names == set(family.FACTORIES)
    assert all(getattr(jaxmaml, name) is getattr(jaxmaml.learners, name) for name in names)


def test_no_module_imports_itself_by_way_of_others():
    graphlib.TopologicalSorter(_modules()).prepare()


def test_packages_say_what_they_are():
    for path in (REPOSITORY / "jaxmaml").rglob("__init__.py"):
        assert ast.get_docstring(ast.parse(path.read_text())), path
