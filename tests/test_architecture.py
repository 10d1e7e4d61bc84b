"""The order of the layers, the furniture of the rooms, names, declared dependencies, sizes."""

import ast
import functools
import importlib
import re
import sys
import tomllib
import types
from pathlib import Path

import pytest

import jaxops

ROOT = Path(__file__).parents[1]
ROOMS = (
    *("vision", "text", "language", "recommend", "forecast"),
    *("tabular", "decide", "survival", "customers"),
)
# From the lowest to the highest; a module imports what is in lower layers, or in its own package.
# The longest name that fits says to which layer a module belongs.
LAYERS = (
    ("_modules", "_shapes", "_table", "_optional", "_version", "train.clock"),
    ("task",),
    ("losses", "metrics"),
    ("optim",),
    ("devices",),
    ("nn", "data"),
    ("state",),
    ("transforms",),
    ("step",),
    ("train",),
    ("trust", "nnx"),
    ("model",),
    ("anonymity", "compress", "explain", "monitor", "privacy", "uncertainty"),
    ("fairness", "federation", "model.scoring"),
    ("robustness",),
    ROOMS,
    ("serve",),
    (
        *("cli_rooms", "cli_serve", "cli_compress", "cli_monitor"),
        *("cli_explain", "cli_fairness", "cli_audit"),
    ),
    ("cli",),
    ("__main__",),
    ("",),  # jaxops itself, which only names what is below it
)
LAYER_OF = {name: layer for layer, names in enumerate(LAYERS) for name in names}
# an import inside a function of what imports it, for what it costs: module -> what it imports
COSTLY = {("model.finished", "train.evaluation")}
OUTSIDE = ("tests", "experiments", "benchmarks", "docs")
# distribution -> what it is imported as, where that is another name
IMPORTED_AS = {
    "orbax-checkpoint": "orbax",
    "absl-py": "absl",
    "tensorflow-datasets": "tensorflow_datasets",
    "pillow": "PIL",
    "pycryptodome": "Crypto",
    "scikit-learn": "sklearn",
    "scikit-survival": "sksurv",
}
BY_HAND = {  # of an environment of its own, which the benchmark names
    "implicit": "benchmarks/recommend_als.py",
    "threadpoolctl": "benchmarks/recommend_als.py",
    "stockpyl": "benchmarks/stockpyl_loop.py",
    "lifetimes": "benchmarks/customers.py",
    "pymc_marketing": "benchmarks/customers_side.py",
    "pytabkit": "benchmarks/tabular_peers_side.py",
    "opacus": "benchmarks/private_opacus.py",
    "jax_privacy": "benchmarks/private_jax_privacy.py",
    "fastapi": "benchmarks/serve_peers.py",
    "orjson": "benchmarks/serve_peers.py",
    "litserve": "benchmarks/serve_lit.py",
    "mlflow": "benchmarks/serve_peers.py",
    "bentoml": "benchmarks/serve_bento.py",
    "captum": "benchmarks/explain_side.py",
    "flwr": "benchmarks/federation.py",
    "shap": "benchmarks/explain_shap.py",
}
NOT_IMPORTED = {
    "importlib_resources": "tensorflow-datasets imports it and does not declare it",
    "mkdocs-material": "the theme of the site, named in mkdocs.yml",
    "mkdocstrings": "a plugin of the site, named in mkdocs.yml",
    "griffelib": "imported as griffe by .ci/griffe_doctests.py, an extension of mkdocstrings",
    "pytest-xdist": "runs the tests in two processes",
    "ruff": "a command",
    "mypy": "a command",
    "nbclient": "imported by pytest.importorskip",
    "ipykernel": "runs the notebook",
    "httptools": "uvicorn reads HTTP by it, in half of the CPU time",
    "uvloop": "uvicorn's loop, where it is installed",
    "ipywidgets": "the notebook's progress bar",
}
LONGEST_FUNCTION, LONGEST_FILE = 60, 450


@functools.cache
def parsed(path):
    return ast.parse(path.read_text())


@functools.cache
def python_files(*folders):
    return [p for f in folders for p in sorted((ROOT / f).rglob("*.py")) if "runs" not in p.parts]


@functools.cache
def modules():
    """Every module of jaxops, without "jaxops." before it, and its file."""
    found = {}
    for path in python_files("jaxops"):
        parts = path.relative_to(ROOT / "jaxops").with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@functools.cache
def imports(tree):
    """(module, name or None, inside a function, only for types) of every import statement."""

    def visit(node, inside, types_only):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                yield from visit(child, True, types_only)
            elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                yield from visit(child, inside, True)
            elif isinstance(child, ast.Import):
                yield from ((alias.name, None, inside, types_only) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"line {child.lineno}: a relative import"
                names = [alias.name for alias in child.names]
                yield from ((child.module, name, inside, types_only) for name in names)
            else:
                yield from visit(child, inside, types_only)

    return list(visit(tree, False, False))


@functools.cache
def edges():
    """(importing module, imported module, inside a function, only for types) within jaxops."""
    found = set()
    for module, path in modules().items():
        for imported, name, inside, types_only in imports(parsed(path)):
            if imported.split(".")[0] == "jaxops":
                target = imported.removeprefix("jaxops").removeprefix(".")
                deeper = f"{target}.{name}".removeprefix(".")
                target = deeper if name and deeper in modules() else target
                found.add((module, target, inside, types_only))
    return found


def layer(module):
    parts = module.split(".")
    fits = (".".join(parts[:n]) for n in range(len(parts), 0, -1))
    name = next((name for name in fits if name in LAYER_OF), "" if module == "" else None)
    assert name is not None, f"jaxops.{module} belongs to no layer; name it in LAYERS"
    return LAYER_OF[name]


def test_imports_go_down():
    for module, target, inside, types_only in sorted(edges()):
        if module == "" or types_only or (inside and (module, target) in COSTLY):
            continue
        same = module.split(".")[0] == target.split(".")[0] and layer(module) == layer(target)
        assert same or layer(target) < layer(module), f"jaxops.{module} imports jaxops.{target}"


def test_no_room_imports_another_and_nothing_below_names_one():
    for module, target, _, _ in sorted(edges()):
        rooms = module.split(".")[0], target.split(".")[0]
        if rooms[1] in ROOMS:
            assert rooms[0] == rooms[1], f"jaxops.{module} imports jaxops.{target}"
    pattern = re.compile(rf"jaxops\.({'|'.join(ROOMS)})\b")
    for module, path in modules().items():
        if module.split(".")[0] not in ROOMS:
            code = _without_docstrings(parsed(path))
            assert not pattern.search(code), f"{path}: names a room"


def _without_docstrings(tree):
    """The code of a file with no comments and no docstrings, whose examples may use a room."""
    tree = ast.parse(ast.unparse(tree))
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            node.value = ast.Constant(0)
    return ast.unparse(tree)


def test_jaxops_knows_nothing_of_experiments_benchmarks_and_tests():
    for path in python_files("jaxops"):
        for module, *_ in imports(parsed(path)):
            assert module.split(".")[0] not in OUTSIDE, f"{path}: {module}"


def test_no_import_circle():
    """Not at module level, and none that an import inside a function hides."""
    graph = {module: set() for module in modules()}
    for module, target, inside, types_only in edges():
        if not types_only and not (inside and (module, target) in COSTLY):
            graph[module].add(target)
    done, path = set(), []

    def visit(module):
        assert module not in path, f"circle: {' -> '.join([*path[path.index(module) :], module])}"
        if module not in done:
            path.append(module)
            for target in graph[module]:
                visit(target)
            path.pop()
            done.add(module)

    for module in graph:
        visit(module)


@pytest.mark.parametrize("room", ROOMS)
def test_every_room_has_the_same_furniture(room):
    folder = ROOT / "jaxops" / room
    for name in ("data", "models", "tasks", "inference"):
        module, package = folder / f"{name}.py", folder / name / "__init__.py"
        assert module.exists() != package.exists(), f"jaxops/{room}: {name}"


def with_public_names():
    """The modules that say by `__all__` what is public."""
    return [f"jaxops.{name}".rstrip(".") for name, path in modules().items()
            if re.search("^__all__ = ", path.read_text(), re.MULTILINE)]  # fmt: skip


@pytest.mark.parametrize("name", with_public_names())
def test_public_names_exist_and_hide_no_module(name):
    package = importlib.import_module(name)
    names = getattr(package, "__all__", [])
    assert len(set(names)) == len(names)
    imported = {target.rpartition(".")[2] for target in _named_modules(name)}
    for public in names:
        thing = getattr(package, public)
        below = f"{name}.{public}".removeprefix("jaxops.")
        if isinstance(thing, types.ModuleType):
            assert public in imported, f"{name}.{public} is a module that nobody exports on purpose"
        else:
            assert below not in modules(), f"{name}.{public} hides the module of that name"


def _named_modules(name):
    """Modules that a package's own file imports by name, also for types only."""
    package = name.removeprefix("jaxops").removeprefix(".")
    return {target for module, target, _, _ in edges() if module == package}


@functools.cache
def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def declared(*extras):
    """What the base installation and the extras install, by the names they are imported as."""
    found, waiting = set(), list(extras)
    lines = list(project()["dependencies"])
    while waiting:
        lines += project()["optional-dependencies"][waiting.pop()]
    for line in lines:
        name, inner = re.match(r"([\w.-]+)(?:\[([\w,]+)\])?", line).groups()
        if name == "jaxops":
            found |= declared(*inner.split(","))
        else:
            found.add(IMPORTED_AS.get(name, name.replace("-", "_")))
    return found


def third_party(path):
    local = {p.stem for p in python_files("tests")} | {"jaxops", "conftest", *OUTSIDE}
    for module, name, inside, types_only in imports(parsed(path)):
        root = module.split(".")[0]
        if root not in sys.stdlib_module_names and root not in local:
            yield root, name, inside, types_only


def required(path):
    """(package, extra) of every call of `require`."""
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Call) and getattr(node.func, "id", None) == "require":
            (module,), (extra,) = node.args, node.keywords
            yield module.value.split(".")[0], extra.value.value


def skipped_without(path):
    """The package of every `importorskip` of a name."""
    calls = (node for node in ast.walk(parsed(path)) if isinstance(node, ast.Call))
    for call in calls:
        named = call.args and isinstance(call.args[0], ast.Constant)
        if named and getattr(call.func, "attr", None) == "importorskip":
            yield call.args[0].value.split(".")[0]


def test_jaxops_imports_what_the_base_declares_and_requires_the_rest():
    for path in python_files("jaxops"):
        for package, _, _, types_only in third_party(path):
            assert types_only or package in declared(), f"{path}: {package}: use require()"
        for package, extra in required(path):
            assert package in declared(extra) - declared(), f"{path}: {package} is not in {extra}"


@pytest.mark.parametrize(
    ("folder", "extra"), [("tests", "all"), ("experiments", "experiments"), ("benchmarks", "bench")]
)
def test_what_is_imported_is_declared(folder, extra):
    for path in python_files(folder):
        for package, *_ in third_party(path):
            known = declared(extra) | BY_HAND.keys()
            assert package in known, f"{path}: {package} is not in the extra {extra}"


def test_what_is_declared_is_imported():
    used = {name for folder in ("jaxops", *OUTSIDE) for p in python_files(folder)
            for name, *_ in third_party(p)}  # fmt: skip
    used |= {package for p in python_files("jaxops") for package, _ in required(p)}
    used |= {package for p in python_files("tests") for package in skipped_without(p)}
    for name in sorted(declared(*project()["optional-dependencies"])):
        listed = {IMPORTED_AS.get(n, n.replace("-", "_")) for n in NOT_IMPORTED}
        assert (name in used) != (name in listed), name


def test_the_version_is_one():
    assert project()["dynamic"] == ["version"] and "version" not in project()
    assert re.fullmatch(r"\d+\.\d+\.\d+", jaxops.__version__)


def test_functions_and_files_fit_a_screen():
    for path in python_files("jaxops"):
        name = path.relative_to(ROOT).as_posix()
        assert len(path.read_text().splitlines()) <= LONGEST_FILE, name
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.FunctionDef):
                lines = node.end_lineno - node.lineno + 1
                first = node.body[0]
                if ast.get_docstring(node) is not None:
                    lines -= first.end_lineno - first.lineno + 1
                assert lines <= LONGEST_FUNCTION, f"{name}:{node.name}"
