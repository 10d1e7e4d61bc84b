"""Every public name is in the reference and in an example that runs."""

import ast
import doctest
import importlib
import pkgutil
import re
import types
from collections.abc import Iterator
from operator import attrgetter
from pathlib import Path

import jaxops

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "docs" / "reference"


def is_public(name: str) -> bool:
    return not any(part.startswith("_") for part in name.split("."))


def public_names() -> dict[str, object]:
    """Dotted name -> object: the `__all__` of each public package, and of the modules in it."""
    names: dict[str, object] = {}
    modules = ["jaxops", *(f"jaxops.{m.name}" for m in pkgutil.iter_modules(jaxops.__path__))]
    waiting = [
        m for m in modules if is_public(m) and hasattr(importlib.import_module(m), "__all__")
    ]
    visited = {id(importlib.import_module(path)) for path in waiting}
    while waiting:
        path = waiting.pop()
        module = jaxops if path == "jaxops" else attrgetter(path.removeprefix("jaxops."))(jaxops)
        for name in module.__all__:
            value = getattr(module, name)
            names[f"{path}.{name}"] = value
            if isinstance(value, types.ModuleType) and id(value) not in visited:
                visited.add(id(value))
                waiting.append(f"{path}.{name}")
    return names


def examples() -> Iterator[tuple[str, dict[str, object]]]:
    """The source of each example that the tests run, and the names it may use from the start."""
    find = doctest.DocTestFinder(exclude_empty=True).find
    for info in pkgutil.walk_packages(jaxops.__path__, "jaxops."):
        module = importlib.import_module(info.name)
        for test in find(module):
            yield "".join(e.source for e in test.examples), dict(vars(module))
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        parsed = doctest.DocTestParser().get_examples(page.read_text(), page.name)
        yield "".join(e.source for e in parsed), {}
    for program in sorted((ROOT / "experiments").glob("*.py")):
        yield program.read_text(), {}


def imported(tree: ast.AST) -> dict[str, object]:
    names: dict[str, object] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "jaxops":
                    module = importlib.import_module(alias.name)
                    names[alias.asname or "jaxops"] = module if alias.asname else jaxops
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("jaxops"):
            module = importlib.import_module(node.module or "")
            for alias in node.names:
                if hasattr(module, alias.name):
                    value = getattr(module, alias.name)
                else:
                    value = importlib.import_module(f"{node.module}.{alias.name}")
                names[alias.asname or alias.name] = value
    return names


def used(source: str, names: dict[str, object]) -> Iterator[object]:
    """What of jaxops an example names: `jo.optim.adam` is looked up from `jo` on."""
    tree = ast.parse(source)
    names = {**names, **imported(tree)}

    def value(node: ast.AST) -> object:
        if isinstance(node, ast.Name):
            return names.get(node.id)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name | ast.Attribute):
            return getattr(value(node.value), node.attr, None)
        return None

    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(value(node.value), types.ModuleType):
            names |= {ast.unparse(target): value(node.value) for target in node.targets}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name | ast.Attribute):
            yield value(node)


def test_every_public_name_is_in_the_reference() -> None:
    names = public_names()
    pages = "\n".join(page.read_text() for page in sorted(REFERENCE.glob("*.md")))
    listed = re.findall(r"^::: (\S+)$", pages, re.MULTILINE)
    missing = sorted(
        n for n, v in names.items() if not isinstance(v, types.ModuleType) and n not in listed
    )
    gone = sorted(set(listed) - set(names))
    assert (missing, gone) == ([], []), f"not in docs/reference: {missing}; no longer there: {gone}"
    assert len(listed) == len(set(listed)), "a name is listed twice"


def test_every_public_name_is_in_an_example() -> None:
    names = public_names()
    shown = {id(value) for source, start in examples() for value in used(source, start)}
    missing = sorted(name for name, value in names.items() if id(value) not in shown)
    assert not missing, f"{len(missing)} of {len(names)} names without an example: {missing}"
