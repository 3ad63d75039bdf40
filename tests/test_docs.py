"""The documentation: generated pages are what the code says, every page is on the site, every link leads somewhere."""

import json
import re
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from bert_miniatures.data.tasks import task_named
from bert_miniatures.zoo import PUBLISHED

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))


def test_the_reference_is_what_the_code_says():
    done = subprocess.run([sys.executable, ROOT / "tools" / "reference.py", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_page_is_on_the_site_once():
    listed: list[str] = []

    def walk(nodes) -> None:
        for node in nodes:
            if isinstance(node, str):
                listed.append(node)
            else:
                for below in node.values():
                    walk(below)

    walk(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    assert sorted(listed) == [page.name for page in PAGES]


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as MkDocs and GitHub make them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    heads = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[\s]+", "-", re.sub(r"[^\w\s-]", "", head.lower()).strip()) for head in heads}


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http://", "https://")):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), f"{page.name}: {target}"
        assert not anchor or anchor in anchors(file), f"{page.name}: {target}"


def test_the_published_rows_are_those_of_the_package():
    """docs/reproduction.md, and its row of the starter against the results of the benchmark."""
    page = (ROOT / "docs" / "reproduction.md").read_text(encoding="utf-8")
    for name, row in PUBLISHED.items():
        cells = ["/".join(map(str, scores)) for scores in row.values()]
        assert f"| {name} | {' | '.join(cells)} |" in page
    results = json.loads((ROOT / "benchmarks" / "results" / "starter.json").read_text())
    means = {one["task"]: [statistics.mean(values) for values in one["scores"].values()] for one in results}
    cells = ["/".join(f"{value:.1f}" for value in means[task]) for task in ("sst2", "mrpc", "stsb", "rte", "cola")]
    assert f"| `starter`, dev | {' | '.join(cells)} |" in page


def shown(values: list[float]) -> str:
    spread = f" ± {statistics.stdev(values):.1f}" if len(set(values)) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"


def test_the_distilled_students_are_those_of_the_benchmark():
    """docs/distillation.md, "Measured", against what benchmarks/distillation.py wrote."""
    page = (ROOT / "docs" / "distillation.md").read_text(encoding="utf-8").replace("**", "")
    results = ROOT / "benchmarks" / "results"
    for row in json.loads((results / "distillation.json").read_text()):
        for metric in row["scores"]["teacher"]:
            cells = [shown(scores[metric]) for scores in row["scores"].values()]
            assert f"| {task_named(row['task']).title} | {metric} | {' | '.join(cells)} |" in page
    compound = json.loads((results / "distillation_compound_stsb.json").read_text())
    for start, scores in compound["starts"].items():
        for metric in scores["teacher"]:
            cells = [shown(row[metric]) for name, row in scores.items() if name != "teacher"]
            assert f"| {start} | {metric} | {' | '.join(cells)} |" in page
    curves = sorted(results.glob("distillation_curve_*.json"))
    assert curves
    for path in curves:
        curve = json.loads(path.read_text())
        for count, scores in curve["points"].items():
            assert f"| {int(count):,} | {shown(scores[curve['metric']])} |" in page
        assert f"({path.stem}.svg)" in page
    students = json.loads((results / "distillation_students_rte.json").read_text())
    assert f"| {min(students['students'])} to {max(students['students'])} |" in page
