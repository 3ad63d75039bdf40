"""The report: numbers against scikit-learn and scipy, a page that loads nothing and that no text can break."""

import html as markup
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some
from scipy.special import expit, softmax
from sklearn.metrics import confusion_matrix, log_loss, mean_absolute_error

from bert_miniatures import finetune, predictions
from bert_miniatures.choice import choose
from bert_miniatures.errors import DataError
from bert_miniatures.report import page
from bert_miniatures.report.facts import calibrated, cells_of, confusion, grids, losses
from bert_miniatures.report.markup import table, tag
from bert_miniatures.report.parts import _points, _worst, details
from bert_miniatures.results import collect
from commands import shell

NASTY = '<script>alert("&")</script> $x$ </svg>'


@pytest.fixture(scope="module")
def runs(tiny, reviews, tmp_path_factory) -> Path:
    """Four cells of a grid, one of them with two seeds; pairs with scores; labels and texts that try to be HTML."""
    folder = tmp_path_factory.mktemp("runs")
    train = {"epochs": 1, "threads": 1, "log_every": 2}
    for batch, rate, seed in ((16, 3e-3, 1), (16, 3e-3, 2), (16, 1e-3, 1), (32, 3e-3, 1), (32, 1e-3, 1)):
        finetune(
            tiny, folder / f"own/bs{batch}-{rate:g}-{seed}", data={"train": reviews[0], "dev": reviews[1], "max_length": 37},
            train=train | {"batch_size": batch, "learning_rate": rate, "seed": seed},
        )  # fmt: skip
    rows = [f'"{NASTY.replace(chr(34), chr(34) * 2)} {i}",<b>{"one" if i % 3 else "two"}</b>' for i in range(41)]
    (folder / "nasty.csv").write_text("text,label\n" + "\n".join(rows) + "\n", encoding="utf-8")
    data = {"train": folder / "nasty.csv", "dev": folder / "nasty.csv", "max_length": 37}
    finetune(tiny, folder / "nasty", data=data, train=train | {"log_every": 1})
    rows = [f"good film,{'bad' * (i % 4)}x,{i % 4}.5" for i in range(37)]
    (folder / "pairs.csv").write_text("text_a,text_b,score\n" + "\n".join(rows) + "\n", encoding="utf-8")
    finetune(tiny, folder / "pairs", data={"train": folder / "pairs.csv", "max_length": 37}, train=train)
    rows = [f"good film {i},{'good|film' if i % 2 else 'film'}" for i in range(37)]
    (folder / "several.csv").write_text("text,label\n" + "\n".join(rows) + "\n", encoding="utf-8")
    data = {"train": folder / "several.csv", "kind": "multilabel", "max_length": 37}
    finetune(tiny, folder / "several", data=data, train=train)
    return folder


@pytest.fixture(scope="module")
def html(runs) -> str:
    return page.report(collect([runs]))


class Reader(HTMLParser):
    """Reads a document strictly: every element is closed, in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in {"meta", "br"}:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.texts.append(data)


# ---------------------------------------------------------------------------------------------------- numbers


@given(some.integers(1, 60), some.integers(2, 5), some.integers(0, 9))
def test_numbers_are_those_of_scikit_learn(rows, classes, seed):
    drawn = np.random.default_rng(seed)
    gold, logits = drawn.integers(0, classes, rows), drawn.normal(size=(rows, classes)).astype(np.float32)
    said, names = logits.argmax(1), list(range(classes))
    np.testing.assert_array_equal(confusion(gold, said, classes), confusion_matrix(gold, said, labels=names))
    expected = log_loss(gold, softmax(logits.astype(np.float64), axis=1), labels=names)
    assert losses("classification", logits, gold).mean() == pytest.approx(expected)
    hidden = np.append(gold, -1)
    assert confusion(hidden, np.append(said, 0), classes).sum() == rows


@given(some.integers(1, 60), some.integers(0, 9))
def test_losses_of_labels_and_scores(rows, seed):
    drawn = np.random.default_rng(seed)
    gold, logits = drawn.integers(0, 2, (rows, 3)), drawn.normal(size=(rows, 3)).astype(np.float32)
    each = [log_loss(gold[:, i], expit(logits[:, i].astype(np.float64)), labels=[0, 1]) for i in range(3)]
    assert losses("multilabel", logits, gold).mean() == pytest.approx(sum(each))
    expected = mean_absolute_error(gold[:, 0], logits[:, 0].astype(np.float64))
    assert losses("regression", logits[:, :1], gold[:, 0]).mean() == pytest.approx(expected)


def test_calibration_error_by_hand():
    """Bins of a fifteenth: 0.95 and 0.96 share one, 0.62 is alone."""
    found = calibrated(np.array([0.95, 0.96, 0.62, 1.0]), np.array([True, False, True, True]))
    assert found.count.tolist() == [1, 3]
    assert found.error == pytest.approx((abs(0.62 - 1) * 1 + abs((0.95 + 0.96 + 1) / 3 - 2 / 3) * 3) / 4)


@given(some.lists(some.tuples(some.floats(0.01, 1), some.booleans()), min_size=1))
def test_calibration_error_is_a_share_and_zero_for_the_sure_and_right(answers):
    sure, right = (np.array(column) for column in zip(*answers, strict=True))
    found = calibrated(sure, right)
    assert 0 <= found.error <= 1
    assert found.count.sum() == len(answers)
    assert calibrated(np.ones(len(answers)), np.ones(len(answers), bool)).error == 0


def test_cells_are_those_that_the_choice_was_made_from(runs):
    every = collect([runs])
    for choice in choose(every):
        assert len(cells_of(choice, every)) == choice.cells
    own = next(choice for choice in choose(every) if choice.cells == 4)
    (grid,) = grids(own, cells_of(own, every))
    assert set(grid.cells) == {(16, 3e-3), (16, 1e-3), (32, 3e-3), (32, 1e-3)}
    assert grid.band is not None
    assert any(cell.runs == own.best.runs for cell in grid.cells.values())


def test_cells_within_the_noise_are_near_and_no_others(runs):
    every = collect([runs])
    own = next(choice for choice in choose(every) if choice.cells == 4)
    cells = cells_of(own, every)
    (grid,) = grids(own, cells)
    place = next(place for place, cell in grid.cells.items() if len(cell.scores) == 1)
    for share, near in ((0.5, True), (2, False)):
        score = own.best.mean - share * grid.band
        moved = [replace(cell, scores=(score,)) if cell is grid.cells[place] else cell for cell in cells]
        assert (place in grids(own, moved)[0].near) == near


def test_curves_end_at_the_last_epoch(runs):
    for run in collect([runs]):
        assert _points(run, None)[-1][0] == pytest.approx(run.epochs)
        assert _points(run, run.metric)[-1] == pytest.approx((run.epochs, 100 * run.score))


# ----------------------------------------------------------------------------------------------------- the page


def test_every_part_is_there(html):
    found = Reader(html)
    headings = re.findall(r"<h[23][^>]*>([^<]*)", html)
    for wanted in ("Scores", "Batch size by learning rate: 1 epochs", "Confusion of the best run", "Worst errors",
                   "Labels of the best run", "Environment"):  # fmt: skip
        assert wanted in headings
    said = " ".join(found.texts)
    for wanted in ("Calibration on dev", "Expected calibration error", "Training loss of the best cell", "Answers on dev",
                   "Seeds: batch size, learning rate", "torch 2"):  # fmt: skip
        assert wanted in said
    assert len([1 for name, attributes in found.tags if name == "td" and attributes.get("class") == "chosen"]) == 1
    assert "good film" in said  # the texts of the worst answers


@pytest.fixture(scope="module")
def told(runs) -> dict[str, tuple[predictions.Predictions, str]]:
    """Return for each folder the dev predictions of the chosen run, and what the report says of it."""
    every, found = collect([runs]), {}
    for choice in choose(every):
        text = "".join(details(choice, every))
        name = choice.run.path.relative_to(runs).parts[0]
        found[name] = (predictions.read(choice.run.path / "predictions" / "dev.parquet"), text)
    return found


def rows_below(text: str, heading: str) -> list[list[str]]:
    """Return the rows of the first table below a heading, as text."""
    rows = re.findall(r"<tr>(.*?)</tr>", text.split(heading)[1].split("</table>")[0], flags=re.DOTALL)
    cells = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, flags=re.DOTALL) for row in rows]
    return [[markup.unescape(cell) for cell in row] for row in cells][1:]


@pytest.mark.parametrize("name", ["own", "nasty"])
def test_confusion_and_calibration_are_those_of_the_chosen_run(told, name):
    found, text = told[name]
    gold, said = found.gold, found.logits.argmax(1)
    shown = [[int(cell.split()[0]) for cell in row[1:]] for row in rows_below(text, "Confusion of the best run")]
    assert shown == confusion_matrix(gold, said, labels=[0, 1]).tolist()
    sure, right = softmax(found.logits.astype(np.float64), axis=1).max(1).mean(), (gold == said).mean()
    way = "more" if sure > right else "less"
    assert f"sure by {sure:.1%}, right in {right:.1%}; {way} sure than right" in markup.unescape(text)


@pytest.mark.parametrize("name", ["own", "nasty", "pairs"])
def test_the_worst_errors_come_first_and_are_errors(told, name):
    found, text = told[name]
    kind = "regression" if name == "pairs" else "classification"
    wrong = dict(zip(found.row_ids, losses(kind, found.logits, found.gold), strict=True))
    missed = [kind == "regression" or a != g for a, g in zip(found.logits.argmax(1), found.gold, strict=True)]
    shown = [row[0] for row in rows_below(text, "Worst errors")]
    candidates = [row for row, is_error in zip(found.row_ids, missed, strict=True) if is_error]
    assert len(shown) == min(8, len(candidates))
    assert set(shown) <= set(candidates)
    assert [wrong[row] for row in shown] == sorted((wrong[row] for row in candidates), reverse=True)[:8]


def test_right_answers_are_no_errors_however_unsure():
    logits = np.array([[2, 1.9], [0, 3], [1, 2]], np.float32)
    for gold, wrong in (([0, 1, 0], ["c"]), ([0, 1, 1], [])):
        found = predictions.Predictions(["a", "b", "c"], logits, ["x", "y"], np.array(gold))
        text = "".join(_worst("classification", found, None, "the data are gone"))
        assert [row[0] for row in rows_below(text, "Worst errors")] == wrong
        assert ("Without texts: the data are gone." in text) == bool(wrong)
        assert ("every dev row is answered right" in text) != bool(wrong)


def test_scores_and_labels_are_counted(told):
    found, text = told["pairs"]
    off = found.logits[:, 0].astype(np.float64) - found.gold
    assert f"On average {abs(off).mean():.2f} off, {off.mean():+.2f} with its sign." in text
    found, text = told["several"]
    said = found.logits >= 0
    counts = [
        (int(gold.sum()), int(a.sum()), int((gold * a).sum())) for gold, a in zip(found.gold.T, said.T, strict=True)
    ]
    assert [tuple(map(int, row[1:])) for row in rows_below(text, "Labels of the best run")] == counts


def test_the_best_cell_is_the_darkest(told):
    found = re.findall(
        r'<td( class="chosen")?[^>]*?style="[^"]*\(--accent\) (\d+)%', told["own"][1].split("Confusion")[0]
    )
    assert sorted(int(depth) for _, depth in found)[-1] == 60
    assert [depth for chosen, depth in found if chosen] == ["60"]
    assert min(int(depth) for _, depth in found) == 0


def test_a_run_without_a_score_is_said(runs):
    (run,) = collect([runs / "nasty"])
    text = page.report([run.model_copy(update={"scores": {}, "finding": "the loss is no number"})])
    assert f"{run.path}: the loss is no number" in text  # among the warnings
    assert "No run has a score on dev: the loss is no number." in text


def test_the_environment_names_the_data(runs, html):
    for choice in choose(collect([runs])):
        assert choice.run.data_sha256["dev"][:12] in html


def test_it_loads_nothing_and_is_small(html):
    found = Reader(html)
    assert len(html.encode()) < 1_000_000
    assert not {name for name, _ in found.tags} & {"script", "img", "link", "iframe", "object", "embed", "form", "base"}
    for _, attributes in found.tags:
        for key in ("src", "href", "xlink:href", "action", "data", "srcset"):
            assert (attributes.get(key) or "#").startswith("#"), attributes
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", html))
    assert "@import" not in html
    ids = [attributes["id"] for _, attributes in found.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for target in re.findall(r'(?:url\(|href=")#([^)"]+)', html):
        assert target in ids


def test_no_text_becomes_html(html):
    assert "<b>one" not in html
    assert "<b>two" not in html
    assert html.count("<script") == 0
    assert any(NASTY in text for text in Reader(html).texts)
    assert tag("p", "<i>", title='"<') == '<p title="&quot;&lt;">&lt;i&gt;</p>'
    assert "&lt;u&gt;" in table(["<u>"], [["<u>", "<u>"]])


def test_numbers_on_axes_keep_their_digits(html):
    assert re.search(r">0\.\d\d</text>|>\d\d\.\d</text>", html)
    assert not re.search(r' d="[^"]*\.\d\d', html)
    assert "#0102" not in html  # every stand-in for a colour was replaced


def test_what_does_not_fit_is_left_out_and_said(runs, monkeypatch):
    monkeypatch.setattr(page, "LIMIT", 150_000)
    text = page.report(collect([runs]))
    assert len(text.encode()) < 150_000
    assert "are left out to keep the file small" in text
    Reader(text)


def test_other_data_gives_no_texts(runs, tmp_path):
    shutil.copytree(runs / "pairs", tmp_path / "pairs")
    config = tmp_path / "pairs" / "run.toml"
    before = config.read_text(encoding="utf-8")
    other = tmp_path / "other.csv"
    other.write_text((runs / "pairs.csv").read_text(encoding="utf-8").replace("good", "bad"), encoding="utf-8")
    config.write_text(before.replace(str(runs / "pairs.csv"), str(other)), encoding="utf-8")
    assert "the data have changed since the run" in page.report(collect([tmp_path]))
    other.unlink()
    assert "the data are not where run.toml says" in page.report(collect([tmp_path]))
    shutil.rmtree(tmp_path / "pairs" / "predictions")
    assert "The run kept no predictions" in page.report(collect([tmp_path]))


# ------------------------------------------------------------------------------------------------- the command


def test_the_command(runs, tmp_path):
    def run(*arguments):
        return shell()("report", *arguments, cwd=tmp_path)

    done = run(runs / "pairs", "-o", "r.html")
    assert (done.code, done.out) == (0, "r.html\n")
    assert (tmp_path / "r.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert "exists; give another -o or --overwrite" in run(runs / "pairs", "-o", "r.html").error
    assert run(runs / "pairs", "-o", "r.html", "--overwrite").code == 0
    (tmp_path / "empty").mkdir()
    assert "no finished run in or below" in run("empty", "-o", "x.html").error
    assert not (tmp_path / "x.html").exists()


def test_no_runs_is_an_error(tmp_path):
    with pytest.raises(DataError, match="no finished run"):
        page.write_report([tmp_path], tmp_path / "r.html")


@pytest.mark.parametrize(
    ("absent", "said"),
    [("matplotlib", "a report needs the 'report' extra: pip install 'bert-miniatures[report]'"), ("torch", "written")],
)
def test_a_missing_package(absent, said, runs, tmp_path):
    """Without matplotlib there is one sentence; without torch there is a report, only without texts."""
    code = (
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.partition('.')[0] == '{absent}': raise ModuleNotFoundError(name, name=name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        "from pathlib import Path\n"
        "from bert_miniatures.errors import MissingExtra\n"
        "from bert_miniatures.report.page import write_report\n"
        "try: write_report([Path(sys.argv[1])], Path('r.html')); print('written')\n"
        "except MissingExtra as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(runs / "pairs")], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stdout.strip() == said, done.stderr
    assert (tmp_path / "r.html").exists() == (absent == "torch")
