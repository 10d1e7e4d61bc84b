"""What the pages say agrees with the files that they speak of."""

import re
from pathlib import Path

from experiments import table
from jaxops.trust import report

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
CORE = ("__init__", "task", "state", "step", "optim", "losses", "metrics", "transforms")


def lines(files: list[Path]) -> int:
    return sum(file.read_text().count("\n") for file in files)


def test_the_table_of_experiments_is_that_of_the_recorded_runs() -> None:
    assert report.table(table.rows()).strip() in (ROOT / "docs" / "experiments.md").read_text()


def test_readme_is_short_and_gives_the_size_of_the_library() -> None:
    readme = (ROOT / "README.md").read_text()
    assert len(readme.encode()) <= 9_000
    text = " ".join(readme.split())
    core = lines([ROOT / "jaxops" / f"{name}.py" for name in CORE])
    whole = lines(sorted((ROOT / "jaxops").rglob("*.py")))
    said = re.search(r"have about ([\d,]+) lines. The whole library has about ([\d,]+)", text)
    assert said is not None
    for number, real in zip(said.groups(), (core, whole), strict=True):
        assert abs(int(number.replace(",", "")) / real - 1) < 0.1, real


def test_links_between_pages_lead_to_files() -> None:
    broken = [
        f"{page.relative_to(ROOT)}: {link}"
        for page in PAGES
        for link in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text())
        if "://" not in link and not (page.parent / link).exists()
    ]
    assert broken == []


def test_files_that_the_pages_name_exist() -> None:
    gone = [
        f"{page.relative_to(ROOT)}: {name}"
        for page in PAGES
        for name in re.findall(
            r"`((?:tests|benchmarks|jaxops|experiments|docs)/[\w/.]+)`", page.read_text()
        )
        if not (ROOT / name).exists() and not re.search(r"ROOM|NAME", name)
    ]
    assert gone == []


def test_numbers_have_a_leading_zero() -> None:
    bare = [
        f"{page.relative_to(ROOT)}: {line.strip()[:80]}"
        for page in PAGES
        for line in page.read_text().splitlines()
        if re.search(r"(?<![\w.:,\\])\.\d", line)
        and "| sales_with_promotions |" not in line  # as the recorded result has it
    ]
    assert bare == []


def test_the_tree_of_the_architecture_is_the_one_on_disk() -> None:
    """Each package's line names all its modules, and none that is not there."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    tree = text[text.index("```text\njaxops/") :]
    for package in sorted(p.parent for p in (ROOT / "jaxops").glob("*/__init__.py")):
        line = next(x for x in tree.splitlines() if x.startswith(f"  {package.name}/"))
        named = {word.strip("/") for word in re.findall(r"[\w/]+", line)[1:]}
        modules = {
            p.stem for p in package.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()
        }
        assert named == {name for name in modules if not name.startswith("_")}, package.name
