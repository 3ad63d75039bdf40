"""The contract of the command line: what goes where, exit codes, one sentence for a mistake; three users at work."""

import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from bert_miniatures.cli import COMMANDS
from commands import environment, finish, shell, start

QUICK = ["--max-length", 32, "--epochs", 2, "--learning-rate", "3e-3", "--batch-size", 16]


@pytest.fixture(scope="module")
def finished(tiny, reviews, tmp_path_factory) -> Path:
    os.environ["MINIATURES_HOME"] = str(tmp_path_factory.mktemp("cache"))
    out = tmp_path_factory.mktemp("runs") / "run"
    arguments = ["--model", tiny, "--train", reviews[0], "--dev", reviews[1], "--out", out]
    done = shell()("finetune", *arguments, *QUICK, "--epochs", 8)
    assert done.code == 0, done.err
    return out


# ------------------------------------------------------------------------------------------------- three users


def test_a_student_with_a_laptop(tiny, tmp_path):
    """Guesses everything: no --dev, no columns named, the folder where he is; then types texts."""
    rows = [f"{'good' if i % 2 else 'bad'} film,{'up' if i % 2 else 'down'}" for i in range(61)]
    (tmp_path / "mine.csv").write_text("\n".join(["review,verdict", *rows]) + "\n")
    done = shell()("finetune", "--model", tiny, "--train", "mine.csv", "--out", "run", *QUICK, cwd=tmp_path)
    assert done.code == 0, done.err
    assert "the text is column 'review', the label is column 'verdict', guessed from the names" in done.err
    assert "6 of 61 rows are held out as dev" in done.err
    assert done.out.startswith("dev: accuracy ")
    again = shell()("finetune", "--model", tiny, "--train", "mine.csv", "--out", "run", *QUICK, cwd=tmp_path)
    assert again.code == 2
    assert "give --resume to continue it, --overwrite to replace it, or another --out" in again.error
    assert [set(row) for row in shell()("predict", "run", stdin=b"good\nbad\n", cwd=tmp_path).rows] == [
        {"label", "score"}
    ] * 2
    assert shell()("evaluate", "run", cwd=tmp_path).out.startswith("accuracy\t")


def test_an_engineer_with_a_csv(tiny, tmp_path):
    """Names columns, keeps the best epoch, wants balanced classes, reads scores and answers by machine."""
    rows = [
        f'{i},"{"good" if i % 4 else "bad"}, a film","{"the" if i % 3 else "was"}",{"yes" if i % 4 else "no"}'
        for i in range(97)
    ]
    (tmp_path / "tickets.csv").write_text("\ufeff" + "\r\n".join(["id,subject,body,answer", *rows]) + "\r\n")
    data = [
        "--train",
        "tickets.csv",
        "--dev",
        "tickets.csv",
        "--text",
        "subject",
        "--pair",
        "body",
        "--label",
        "answer",
    ]
    chosen = ["--keep", "best", "--set", "train.class_weights=balanced", "--json"]
    result = shell()("finetune", "--model", tiny, *data, *chosen, "--out", "run", *QUICK, cwd=tmp_path).json
    assert result == json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["labels"], result["rows"]) == (["no", "yes"], {"train": 97, "dev": 97})
    scored = shell()("evaluate", "run", "--json", cwd=tmp_path).json
    assert scored == {"split": "dev", "rows": 97, "scores": pytest.approx(result["scores"]["dev"])}
    done = shell()(
        "predict", "run", "tickets.csv", "--text", "subject", "--pair", "body", "--out", "a.jsonl", cwd=tmp_path
    )
    assert (done.code, done.out) == (0, "")
    answers = [json.loads(line)["label"] for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    right = sum(answer == ("yes" if i % 4 else "no") for i, answer in enumerate(answers))
    assert right / 97 == pytest.approx(scored["scores"]["accuracy"])


def test_a_researcher_with_a_recipe(tiny, reviews, tmp_path):
    """Writes settings once, overrides one of them, repeats seeds; run.toml makes the same run again."""
    recipe = f'model = "{tiny}"\n[data]\ntrain = "{reviews[0]}"\ndev = "{reviews[1]}"\nmax_length = 32\n[train]\nepochs = 1\n'
    (tmp_path / "recipe.toml").write_text(recipe)
    chosen = ["--config", tmp_path / "recipe.toml", "--set", "train.optimizer=bertadam", "--seed", 3]
    first = shell()("finetune", *chosen, "--out", tmp_path / "a", "--json").json
    assert first["seed"] == 3
    second = shell()("finetune", "--config", tmp_path / "a" / "run.toml", "--out", tmp_path / "b", "--json").json
    assert 'optimizer = "bertadam"' in (tmp_path / "b" / "run.toml").read_text()
    assert (first["scores"], first["seed"], first["data_sha256"]) == (second["scores"], 3, second["data_sha256"])
    weights = [(tmp_path / name / "model" / "model.safetensors").read_bytes() for name in "ab"]
    assert weights[0] == weights[1]
    resumed = shell()("finetune", "--out", tmp_path / "b", "--resume", "--json")
    assert resumed.json == second
    assert "is finished already" in resumed.err


# ------------------------------------------------------------------------------------------------- what goes where


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help(command):
    for option in ("--help", "-h"):
        done = shell()(*([command] if command else []), option)
        assert (done.code, done.err) == (0, "")
        assert done.out.startswith(f"Usage: miniatures {command}".rstrip())
    if not command:
        assert shell()().out == done.out
        assert all(f"  {name} " in done.out for name in COMMANDS)


def test_version():
    assert shell()("--version").out == version("bert-miniatures") + "\n"


def test_results_on_stdout_and_nothing_else(finished, tiny, tmp_path):
    scores = json.loads((finished / "result.json").read_text())["scores"]["dev"]
    done = shell()("evaluate", finished)
    assert done.out == "".join(f"{name}\t{value:.4f}\n" for name, value in scores.items())
    done = shell()("finetune", "--out", finished, "--resume")
    seconds = json.loads((finished / "result.json").read_text())["seconds"]
    shown = ", ".join(f"{name} {value:.4f}" for name, value in scores.items())
    assert done.out == f"dev: {shown}\n{finished}: {seconds:.0f} s\n"
    for command in (
        ["models"],
        ["tokenize", tiny, "a film"],
        ["convert", tiny, tmp_path / "copy"],
        ["evaluate", finished],
    ):
        assert isinstance(shell()(*command, "--json").json, dict)


def test_a_score_that_is_not_defined_is_null_in_json(tiny, tmp_path):
    (tmp_path / "train.csv").write_text(
        "text,score\n" + "".join(f"{w} film,{s}\n" for w, s in [("good", 1.5), ("bad", 0.5)] * 7)
    )
    (tmp_path / "dev.csv").write_text("text,score\ngood,1.5\nbad,1.5\n")
    files = ["--train", tmp_path / "train.csv", "--dev", tmp_path / "dev.csv"]
    done = shell()("finetune", "--model", tiny, *files, "--out", tmp_path / "run", *QUICK, "--json")
    assert done.json["scores"]["dev"] == {"pearson": None, "spearman": None}
    assert shell()("evaluate", tmp_path / "run", "--json").json["scores"] == {"pearson": None, "spearman": None}
    assert "dev: pearson undefined" in shell()("finetune", "--out", tmp_path / "run", "--resume").out


@pytest.mark.parametrize(
    "arguments", [["models"], ["models", "--json"], ["--help"], ["--version"], ["evaluate", "RUN"], ["predict", "RUN"]]
)
def test_a_full_disk_behind_stdout(arguments, finished):
    arguments = [finished if argument == "RUN" else argument for argument in arguments]
    done = shell()(*arguments, stdin=b"good\n", stdout="/dev/full")
    assert done.code == 1
    assert done.error == "the output: no space left on the device"


def test_nobody_reads_the_notes(tiny, reviews, tmp_path):
    """The work is done although stderr is full, closed, or a pipe that nobody reads."""
    files = ["--model", tiny, "--train", reviews[0], "--out"]
    assert shell()("finetune", *files, tmp_path / "full", *QUICK, stderr="/dev/full").code == 0
    assert (tmp_path / "full" / "result.json").is_file()
    reader, writer = os.pipe()
    os.close(reader)
    process = start(tmp_path, "finetune", *files, "pipe", *QUICK, stderr=writer)
    os.close(writer)
    assert finish(process).code == 0
    assert (tmp_path / "pipe" / "result.json").is_file()


@pytest.mark.parametrize(("closed", "code"), [("<&-", 2), (">&-", 0), ("2>&-", 0)])
def test_a_stream_that_is_closed(closed, code, tiny, tmp_path):
    given = "" if closed == "<&-" else "'a film'"
    line = f"'{sys.executable}' -m bert_miniatures tokenize '{tiny}' {given} {closed}"
    done = subprocess.run(
        ["sh", "-c", line], env=environment(tmp_path), capture_output=True, text=True, input="a film\n"
    )
    assert "Traceback" not in done.stderr
    assert done.returncode in {0, code}
    assert done.stdout.count("a film") == (closed == "2>&-")


def test_the_reader_leaves_early(finished, tmp_path):
    """`miniatures predict RUN texts | head -1`"""
    (tmp_path / "texts.txt").write_text("good film\n" * 5000)
    with start(tmp_path, "predict", finished, "texts.txt") as process:
        assert json.loads(process.stdout.readline())["label"] in {"positive", "negative"}
        process.stdout.close()
        assert process.wait(timeout=60) == 0
        assert process.stderr.read() == b""


def test_results_are_utf8_whatever_the_locale_is(tiny, tmp_path):
    for env in ({"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}):
        done = finish(start(tmp_path, "tokenize", tiny, "--json", env=env), "žluť\n".encode())
        assert done.json["texts"][0]["text"] == "žluť"


def test_colour_only_on_a_terminal_that_wants_it(finished):
    for env, colour in ({}, True), ({"NO_COLOR": "1"}, False):
        master, slave = os.openpty()
        done = shell()("predict", finished, stdin="中文\n".encode(), stderr=os.ttyname(slave), env=env)
        seen = os.read(master, 100_000).decode()
        os.close(slave)
        os.close(master)
        assert done.code == 0
        assert "warning: " in seen
        assert ("\x1b[33m" in seen) == colour
    assert "\x1b" not in shell()("predict", finished, stdin="中文\n".encode()).err


# ------------------------------------------------------------------------------------------------- mistakes


def table(folder: Path, text: str | bytes, name: str = "t.csv") -> Path:
    (folder / name).write_bytes(text.encode() if isinstance(text, str) else text)
    return folder / name


GOOD = "text,label\na,x\nb,y\n"
LONG = "text,label\n" + "good " * 100_000 + ",x\nbad,y\n"
SCORES = "text,score\na,1.5\nb,2.5\n"
# what is wrong -> (training file, more arguments, what the sentence says)
BAD_DATA = {
    "empty file": ("", [], "t.csv: the file is empty"),
    "only a header": ("text,label\n", [], "t.csv: has columns (text, label) and no rows"),
    "ragged row": ("text,label\na,x\nb,y,z\n", [], "t.csv:3: expected 2 columns (text, label), got 3"),
    "open quote": ('text,label\na,x\n"b,y\n', [], "t.csv:3: a quote that opens in this row is never closed"),
    "not UTF-8": (b"text,label\na,x\nb\xff,y\n", [], "t.csv:3: not UTF-8 (byte 0xff at byte 16 of the file)"),
    "UTF-16": (GOOD.encode("utf-16"), [], "t.csv:1: UTF-16 text, expected UTF-8"),
    "NUL byte": (b"text,label\na,x\nb\0,y\n", [], "t.csv:3: a NUL byte"),
    "one class": ("text,label\na,x\nb,x\n", [], "t.csv: every row has the label 'x'; at least two classes are needed"),
    "no label": ("text,label\na,x\nb,\n", [], "t.csv:3: the label is missing"),
    "one score": ("text,score\na,1.5\nb,1.5\n", [], "t.csv: every score is 1.5; there is nothing to learn"),
    "NaN score": (SCORES + "c,nan\n", ["--kind", "regression"], "t.csv:4: score 'nan' is not a finite number"),
    "infinite score": (SCORES + "c,1e999\n", [], "t.csv:4: score '1e999' is not a finite number"),
    "no such column": (GOOD, ["--text", "txt"], "unknown column 'txt'; did you mean 'text'?"),
    "no such pair": (GOOD, ["--pair", "Label"], "unknown column 'Label'; did you mean 'label'?"),
    "no such kind": (GOOD, ["--kind", "regresion"], "data.kind = 'regresion': input should be 'classification', 'regression'"),
    "no such setting": (GOOD, ["--set", "train.epoch=3"], "unknown setting 'train.epoch'; did you mean 'train.epochs'?"),
    "no such value": (GOOD, ["--set", "train.epochs=0"], "train.epochs = 0: input should be greater than 0"),
    "half a setting": (GOOD, ["--set", "train.epochs"], "expected key=value"),
    "too long": (GOOD, ["--max-length", 38], "max_length 38 is more than the model's 37 positions"),
    "two kinds of data": (GOOD, ["--task", "sst2"], "give either --task with a GLUE folder, or own files with --train"),
    "no dev set": (GOOD, ["--keep", "best"], "keep = best needs a dev set to choose by"),
    "resume what": (GOOD, ["--resume", "--overwrite"], "--resume and --overwrite exclude each other"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD_DATA)
def test_bad_data_is_one_sentence_with_exit_code_2(what, tiny, tmp_path):
    text, more, said = BAD_DATA[what]
    out = tmp_path / "run"
    done = shell()(
        "finetune", "--model", tiny, "--train", table(tmp_path, text), "--out", out, "--max-length", 16, *more
    )
    assert done.code == 2, done.err
    assert said in done.error
    assert not out.exists()


def test_a_label_that_is_not_in_the_training_data(tiny, reviews, tmp_path):
    dev = table(tmp_path, "text,label\na,positive\nb,positve\n")
    done = shell()("finetune", "--model", tiny, "--train", reviews[0], "--dev", dev, "--out", tmp_path / "run", *QUICK)
    assert done.code == 2
    assert done.error == f"{dev}:3: label 'positve' is not one of negative, positive; did you mean 'positive'?"
    assert not (tmp_path / "run").exists()


def test_a_text_of_100_000_words_is_cut_and_said(tiny, tmp_path):
    out = tmp_path / "run"
    done = shell()("finetune", "--model", tiny, "--train", table(tmp_path, LONG), "--out", out, "--max-length", 16)
    assert done.code == 0, done.err
    assert "train: 2 rows, 7.5 pieces on average, 1 cut at 16 (50.0%)" in done.err


# command -> (what the sentence says, exit code); RUN is a finished run, TINY a model without a classifier
WRONG_USE = {
    "finetun": ("No such command 'finetun'. Did you mean 'finetune'?", 2),
    "models --jsn": ("No such option: --jsn", 2),
    "finetune --model TINY": ("Missing option '--out'. ('miniatures finetune --help' shows how)", 2),
    "finetune --model TINY --out x --epochs many": ("Invalid value for '--epochs'", 2),
    "finetune --model tinny --train mine.csv --out x": ("mine.csv: no such file", 2),
    "finetune --model tinny --train TRAIN --out x": ("unknown model 'tinny'; did you mean 'tiny'?", 2),
    "finetune --model TINY --out x": ("no data: give --task TASK --glue DIR, or --train FILE", 2),
    "finetune --train TRAIN --out x": ("no model: give --model, as in --model tiny", 2),
    "finetune --out x --resume": ("x: there is no run to resume", 2),
    "finetune --model TINY --task sst22 --out x": ("unknown task 'sst22'; did you mean 'sst2'?", 2),
    "finetune --model TINY --task ax --out x": ("AX has no training data; fine-tune on 'mnli' instead", 2),
    "finetune --model TINY --task sst2 --out x": ("SST-2 is not on this machine, and --offline or HF_HUB_OFFLINE", 2),
    "finetune --model TINY --task sst2 --glue nowhere --out x": ("nowhere", 2),
    "finetune --model TINY --train TRAIN --out TINY --overwrite": ("only replaces runs", 2),
    "finetune --model TINY --train TRAIN --out TRAIN": ("train.csv is a file; expected a folder", 2),
    "finetune --model TINY --train TRAIN --out TRAIN/x": ("train.csv is a file; expected a folder", 2),
    "finetune --config nowhere.toml --out x": ("nowhere.toml: no such file", 2),
    "finetune --epochs 3 --out RUN --resume": ("a run is resumed as it was begun", 2),
    "evaluate TINY": ("no finished run (no result.json); 'miniatures finetune' makes one", 2),
    "evaluate RUN --split test": ("own data has the splits train and dev, not 'test'", 2),
    "predict": ("Missing argument 'model'", 2),
    "predict nowhere": ("unknown model 'nowhere'", 2),
    "predict TINY": ("this model has no classifier; 'miniatures finetune' makes one", 2),
    "predict tiny": ("is not on this machine, and --offline or HF_HUB_OFFLINE forbids to fetch it", 2),
    "predict RUN nowhere.csv": ("nowhere.csv: no such file", 2),
    "predict RUN TRAIN --text txt": ("unknown column 'txt'; did you mean 'text'?", 2),
    "predict RUN TRAIN --text text --pair label": ("this model reads one text, got pairs; leave --pair out", 2),
    "predict RUN TRAIN --out x.doc": ("x.doc: unknown file type '.doc', expected .jsonl .csv .tsv .parquet", 2),
    "predict RUN - --resume --out x.csv": ("--resume needs a file to read and --out", 2),
    "predict RUN TRAIN --workers 0": ("Invalid value for '--workers'", 2),
    "predict RUN - --text a": ("lines of text have no columns", 2),
    "predict RUN": ("<stdin>: the input is empty", 2),
    "convert nowhere x": ("nowhere: no such folder or checkpoint", 2),
    "convert TINY RUN": ("exists and is not empty; give another path or --overwrite", 2),
}  # fmt: skip


@pytest.mark.parametrize("line", WRONG_USE)
def test_wrong_use_is_one_sentence(line, finished, tiny, reviews, tmp_path):
    said, code = WRONG_USE[line]
    known = {"RUN": finished, "TINY": tiny, "TRAIN": reviews[0]}
    arguments = [str(known[word]) if word in known else word.replace("TRAIN", str(reviews[0])) for word in line.split()]
    done = shell()(*arguments, cwd=tmp_path)
    assert done.code == code, done.err
    assert done.out == ""
    error = done.err if "is not on this machine" in said else done.error  # which takes several lines
    assert said in error
    assert os.listdir(tmp_path) in ([], ["cache"])


def test_debug_shows_where_and_nothing_else_does(tiny):
    for place in (["--debug", "predict", tiny], ["predict", "--debug", tiny], ["predict", tiny, "--debug"]):
        done = shell()(*place)
        assert done.code == 1
        assert "Traceback" in done.err
        assert "bert_miniatures.errors.CheckpointError" in done.err
    assert "CheckpointError" not in shell()("predict", tiny).error


# ------------------------------------------------------------------------------------------------- without torch

BLOCK = """
import sys
class Blocked:
    def find_spec(self, name, *_):
        if name.partition(".")[0] in {"torch", "sklearn", "scipy", "transformers"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocked())
"""


@pytest.mark.parametrize(
    ("what", "arguments"),
    [
        ("fine-tuning", ["finetune", "--model", "TINY", "--train", "TRAIN", "--out", "x"]),
        ("evaluating", ["evaluate", "RUN"]),
        ("predicting", ["predict", "RUN", "TRAIN"]),
    ],
)
def test_without_torch_the_extra_is_named(what, arguments, finished, tiny, reviews, tmp_path):
    known = {"RUN": finished, "TINY": tiny, "TRAIN": reviews[0]}
    done = finish(start(tmp_path, *(known.get(word, word) for word in arguments), code=BLOCK))
    assert done.code == 2
    assert done.error == f"{what} needs the 'train' extra: pip install 'bert-miniatures[train]'"
    assert not (tmp_path / "x").exists()


def test_without_torch_the_rest_works(tiny, tmp_path):
    assert finish(start(tmp_path, "models", code=BLOCK)).out.startswith("size ")
    assert finish(start(tmp_path, "tokenize", tiny, "a film", code=BLOCK)).out.startswith("[CLS] a film [SEP]\n")
    assert finish(start(tmp_path, "convert", tiny, "copy", code=BLOCK)).out.startswith("copy\n")
    shutil.rmtree(tmp_path / "copy")
