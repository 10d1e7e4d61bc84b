"""What a model file says of its model, as rows of tables."""

from typing import Any

import jax

from jaxops.model.finished import Model
from jaxops.nn.packed import is_packed


def described(model: Model) -> dict[str, list[dict[str, Any]]]:
    """The rows of two tables, by heading: what a model is, and its validation figures.

    >>> described(Model("a closed form", None, None, {"rows": 3}))["model"][-1]
    {'what': 'rows', 'value': '3'}
    """
    task = model.task
    facts: dict[str, Any] = {"room": model.room or "none (reads arrays)"}
    if model.state is not None:
        make, arguments = task.recipe or (None, ())
        leaves = jax.tree.leaves(model.state.params, is_leaf=is_packed)
        facts["task"] = f"{make.__module__}.{make.__qualname__}" if make else "made by hand"
        facts |= {name: str(value) for name, value in arguments if name in ("module", "model")}
        facts["parameters"] = f"{sum(leaf.size for leaf in leaves):,}"
        facts["inputs"] = ", ".join(f"{c.name} {c.dtype}{list(c.shape)}" for c in task.columns)
        facts["classes"] = ", ".join(task.classes[:20]) + ", ..." * (len(task.classes) > 20)
    else:
        facts["kind"] = type(task).__name__
    if hasattr(model.reader, "describe"):
        facts |= model.reader.describe()
    plain = {k: v for k, v in model.about.items() if not isinstance(v, dict | list)}
    facts |= plain | {f"{name} version": v for name, v in model.versions.items()}
    tables = {"model": [{"what": k, "value": str(v)} for k, v in facts.items() if v != ""]}
    figures = model.about.get("validation")
    if figures:
        tables["validation"] = [{"validation": k, "value": v} for k, v in figures.items()]
    return tables
