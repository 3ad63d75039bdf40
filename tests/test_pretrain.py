"""Pre-training end to end: files, losses of transformers, budgets, two lengths, resume after kill -9, bad input."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from hypothesis import example, given
from hypothesis import strategies as st

from bert_miniatures.checkpoint import ModelFolder, read_folder, write_folder
from bert_miniatures.config import PretrainConfig
from bert_miniatures.errors import ConfigError, DataError, Diverged, OutputExists
from bert_miniatures.files import RunFolder
from bert_miniatures.horizon import Horizon, Pace
from bert_miniatures.recipes.course import course_of, held_out_of, work_of
from bert_miniatures.recipes.pretrain import pretrain
from bert_miniatures.recipes.text_loading import load_text_inputs
from bert_miniatures.tokenizer import Tokenizer
from bert_miniatures.watch import Watch
from commands import finish, shell
from conftest import PIECES
from test_torchrun import records, two

DATA = {"max_length": 31}
QUICK = {"steps": 23, "batch_size": 7, "learning_rate": 3e-3, "log_every": 1, "threads": 1}
WEIGHTS = Path("model", "model.safetensors")


class Heard(Watch):
    def __init__(self) -> None:
        super().__init__()
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


class Stopper(Watch):
    """Presses Ctrl-C after some updates."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.after = after

    def progress(self, done: int, total: int, text: str = "", left: float | None = None) -> None:
        if "loss" in text and done >= self.after:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """43 short documents in which words foretell each other."""
    drawn, documents = random.Random(3), []
    for _ in range(43):
        word = drawn.choice(["good", "bad"])
        lines = [f"The film was {drawn.choice(['very', 'not'])} {word}. The {drawn.choice('abcdefgh')} is {word}."
                 for _ in range(drawn.randint(2, 9))]  # fmt: skip
        documents.append("\n".join(lines))
    path = tmp_path_factory.mktemp("corpus") / "text.txt"
    path.write_text("\n\n".join(documents) + "\n")
    return path


@pytest.fixture(scope="module")
def still(tiny, tmp_path_factory) -> Path:
    """The tiny model without dropout, which depends on how a batch is divided."""
    found = read_folder(tiny)
    config = found.config.model_copy(update={"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0})
    folder = tmp_path_factory.mktemp("models") / "still"
    write_folder(folder, ModelFolder(config, found.weights, found.tokenizer), card="")
    return folder


@pytest.fixture(scope="module")
def whole(tiny, corpus, tmp_path_factory) -> Path:
    os.environ["MINIATURES_HOME"] = str(tmp_path_factory.mktemp("cache"))
    out = tmp_path_factory.mktemp("runs") / "run"
    pretrain(tiny, corpus, out, data=DATA, train=QUICK)
    return out


def bits(run: Path) -> bytes:
    return (run / WEIGHTS).read_bytes()


def result_of(run: Path) -> dict:
    return json.loads((run / "result.json").read_text())


def parts(model: Path, corpus: Path, **data):
    config = PretrainConfig.of({"model": str(model), "data": DATA | data | {"corpus": [corpus]}, "train": QUICK})
    return config, load_text_inputs(config, Watch(), Path("run"))


def interrupted(model: Path, corpus: Path, out: Path, after: int = 9, **settings) -> None:
    options = {"data": DATA, "train": QUICK} | settings
    with pytest.raises(KeyboardInterrupt):
        pretrain(model, corpus, out, watch=Stopper(after), **options)
    assert not RunFolder(out).is_finished()


# ------------------------------------------------------------------------------------------- what it leaves


def test_run_folder_has_exactly_these_files(whole):
    found = {str(path.relative_to(whole)) for path in whole.rglob("*") if path.is_file()}
    model = {"config.json", "model.safetensors", "vocab.txt", "tokenizer.json", "tokenizer_config.json"}
    model |= {"miniature.json", "README.md"}
    assert found == {"run.toml", "metrics.jsonl", "result.json"} | {f"model/{name}" for name in model}
    assert "updates of 7 rows" in (whole / "model" / "README.md").read_text()


def theirs_on(batch, model) -> tuple[float, float, float, float]:
    """Losses and right guesses of a batch, by transformers."""
    mask = torch.ones_like(batch.ids) if batch.mask is None else batch.mask.long()
    with torch.no_grad():
        out = model(input_ids=batch.ids, attention_mask=mask, token_type_ids=batch.segments)
    logits = out.prediction_logits.flatten(0, 1)[batch.masked]
    lost = float(F.cross_entropy(logits, batch.targets, reduction="sum"))
    pairs = out.seq_relationship_logits
    return (lost, float((logits.argmax(1) == batch.targets).sum()),
            float(F.cross_entropy(pairs, batch.next, reduction="sum")), float((pairs.argmax(1) == batch.next).sum()))  # fmt: skip


def test_scores_are_those_that_transformers_finds_in_the_folder(whole, tiny, corpus):
    model = transformers.AutoModelForPreTraining.from_pretrained(whole / "model").eval()
    assert type(model).__name__ == "BertForPreTraining"
    config, inputs = parts(tiny, corpus)
    (batches,) = held_out_of(config, inputs.parent, inputs.corpus, inputs.held_out)
    lost, right, _, next_right = (
        sum(column) for column in zip(*(theirs_on(batch, model) for batch in batches), strict=True)
    )
    words, pairs = sum(len(batch.masked) for batch in batches), sum(len(batch.starts) for batch in batches)
    scores = result_of(whole)["scores"]["held_out"]
    assert scores["loss"] == pytest.approx(lost / words, abs=1e-5)
    assert scores["accuracy"] == pytest.approx(right / words)
    assert scores["perplexity"] == pytest.approx(np.exp(lost / words), rel=1e-5)
    assert scores["next_accuracy"] == pytest.approx(next_right / pairs)
    masked = transformers.AutoModelForMaskedLM.from_pretrained(whole / "model").eval()
    ids = batches[0].ids
    with torch.no_grad():
        np.testing.assert_array_equal(masked(input_ids=ids).logits, model(input_ids=ids).prediction_logits)


def test_dropout_of_a_run_is_its_own(whole, still, tiny, corpus, tmp_path):
    pretrain(still, corpus, tmp_path / "model", data=DATA, train=QUICK)
    pretrain(tiny, corpus, tmp_path / "run", data=DATA, train=QUICK | {"dropout": 0.0})
    model, run, other = (
        [record["loss"] for record in records(path) if "loss" in record]
        for path in (tmp_path / "model", tmp_path / "run", whole)
    )
    assert model == run != other
    assert read_folder(tmp_path / "run" / "model").config == read_folder(tiny).config


@pytest.mark.parametrize("pairs", [True, False])
def test_the_first_loss_is_that_of_transformers(pairs, still, corpus, tmp_path):
    run = tmp_path / "run"
    pretrain(still, corpus, run, data=DATA | {"next_sentence": pairs}, train=QUICK | {"steps": 1})
    config, inputs = parts(still, corpus, next_sentence=pairs)
    course = course_of(config, inputs.parent, inputs.corpus, inputs.training)
    (batch,) = course.micro(course.rows_of(0))
    model = transformers.BertForPreTraining.from_pretrained(still).eval()
    labels = torch.full(batch.ids.shape, -100).flatten()
    labels[batch.masked] = batch.targets
    mask = torch.ones_like(batch.ids) if batch.mask is None else batch.mask.long()
    with torch.no_grad():
        out = model(input_ids=batch.ids, attention_mask=mask, token_type_ids=batch.segments)
        expected = F.cross_entropy(out.prediction_logits.flatten(0, 1), labels)
        if pairs:  # an instance counts as often as it has masked words
            times = (labels.view_as(batch.ids) != -100).sum(1)
            each = F.cross_entropy(out.seq_relationship_logits, batch.next, reduction="none")
            expected = expected + (each * times).sum() / times.sum()
    assert records(run)[0]["loss"] == pytest.approx(float(expected), abs=1e-5)


def test_it_learns(tiny, corpus, tmp_path):
    train = QUICK | {"steps": None, "epochs": 7, "eval_every": 50, "learning_rate": 1e-2}
    result = pretrain(tiny, corpus, tmp_path / "run", data=DATA, train=train)
    found = [record["loss"] for record in records(tmp_path / "run") if "loss" in record]
    assert np.mean(found[-9:]) < 0.6 * np.mean(found[:9])
    held_out = [record["scores"]["loss"] for record in records(tmp_path / "run") if "scores" in record]
    assert held_out[-1] < held_out[0]
    assert result["passes"] == 7
    assert [record["step"] for record in records(tmp_path / "run") if "scores" in record] == [50, 100, result["steps"]]


def test_same_seed_same_bits_other_seed_others_and_so_with_two_threads(whole, tiny, corpus, tmp_path):
    pretrain(tiny, corpus, tmp_path / "again", data=DATA, train=QUICK)
    assert bits(tmp_path / "again") == bits(whole)
    pretrain(tiny, corpus, tmp_path / "other", data=DATA, train=QUICK | {"seed": 2})
    assert bits(tmp_path / "other") != bits(whole)
    for name in ("a", "b"):
        pretrain(
            tiny,
            corpus,
            tmp_path / name,
            data=DATA | {"packed": True},
            train=QUICK | {"threads": 2, "steps": 5, "eval_every": 5},
        )
    assert bits(tmp_path / "a") == bits(tmp_path / "b")


def test_records_count_tokens_and_work(whole, tiny, corpus):
    config, inputs = parts(tiny, corpus)
    course = course_of(config, inputs.parent, inputs.corpus, inputs.training)
    read = [next(course.micro(course.rows_of(step))).tokens for step in range(23)]
    found = [record for record in records(whole) if "loss" in record]
    assert [record["tokens"] for record in found] == np.cumsum(read).tolist()
    assert all(record["tokens_per_second"] > 0 and record["share_of_gemm_peak"] >= 0 for record in found)
    assert max(record["share_of_gemm_peak"] for record in found) > 0  # one update alone may fall into a pause
    assert found[11]["learning_rate"] == pytest.approx(3e-3 * (23 - 11) / (23 - 2))


def test_work_is_what_torch_counts_of_the_plain_model(still):
    from torch.utils.flop_counter import FlopCounterMode

    model = transformers.BertForMaskedLM.from_pretrained(still, attn_implementation="eager").eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=torch.ones(3, 17, dtype=torch.long))
    every = 3 * work_of(read_folder(still).config, np.array([17]), 1.0) / 3  # every position is guessed
    assert counter.get_total_flops() == pytest.approx(every)


# ------------------------------------------------------------------------------------------- how long


SHARES = st.sampled_from([0.0, 0.1, 0.37, 0.9])


@given(st.floats(10, 1e5), st.floats(1e-3, 10), st.floats(1e-3, 10), st.floats(0, 5), SHARES)
def test_a_budget_is_used_and_not_exceeded(seconds, short, long, evaluation, share):
    pace = Pace(short, long if share else short, evaluation)
    run = Horizon((), share).begun(seconds, pace)
    longer = run.steps - run.long_begins
    spent = (run.steps - longer) * pace.short + longer * pace.long + run.evaluations_after(0) * evaluation
    assert spent <= seconds + pace.short + pace.long or run.steps == 1
    if run.steps > 10:
        assert spent >= seconds - 2 * (pace.short + pace.long) - evaluation


@given(st.lists(st.tuples(st.integers(1, 60), st.integers(1, 90)), max_size=5), SHARES, st.sampled_from([None, 7]))
@example([(20, 5)], 0.37, None)  # the second length is due at update 16 of 25, which are over when this is known
def test_events_that_come_later_change_nothing_before(more, share, every):
    events, at = [(0, 50)], 0
    for gap, length in more:
        at += gap
        if at >= events[-1][1]:
            break
        events.append((at, at + length))
    full = Horizon(tuple(events), share, every)
    for count in range(1, len(events)):
        before, end = Horizon(tuple(events[:count]), share, every), events[count][0]
        for step in range(end):
            assert before.known_at(step) == full.known_at(step)
            assert (step >= before.long_begins) == (step >= full.long_begins)
    assert full.is_due(full.steps)
    if len(events) == 1:
        assert sum(full.is_due(step) for step in range(1, 51)) == full.evaluations_after(0)


def test_a_budget_decides_and_its_schedule_can_be_repeated_bit_for_bit(tiny, corpus, tmp_path):
    """Interrupted, resumed, corrected on the way: the schedule in result.json gives the same weights again."""
    train = {name: value for name, value in QUICK.items() if name != "steps"} | {"log_every": 5}
    data = DATA | {"max_length": 16, "long_length": 31, "long_share": 0.3}
    run = tmp_path / "run"
    interrupted(tiny, corpus, run, after=20, data=data, train=train | {"budget": "4s"})
    begun = records(run)[-1]
    state = [
        record["seconds"]
        for record in map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
        if "seconds" in record
    ]
    heard = Heard()
    result = pretrain(tiny, corpus, run, data=data, train=train | {"budget": "4s"}, resume=True, watch=heard)
    assert any(note.startswith(f"resumed at step {begun['step']} of ") for note in heard.notes)
    assert state[-1] < 4
    assert 3 < result["seconds"] < 7
    assert result["schedule"][0][0] == 0
    assert result["schedule"][-1][1] == result["steps"] > begun["step"]
    again = pretrain(tiny, corpus, tmp_path / "again", data=data, train=train | {"schedule": result["schedule"]})
    assert again["steps"] == result["steps"]
    assert bits(tmp_path / "again") == bits(run)
    rates = [
        {r["step"]: r["learning_rate"] for r in records(one) if "learning_rate" in r}
        for one in (run, tmp_path / "again")
    ]
    assert all(rates[0][step] == rates[1][step] for step in rates[0].keys() & rates[1].keys())


def test_the_learning_rate_is_that_of_the_length_known_then(tiny, corpus, tmp_path):
    train = {name: value for name, value in QUICK.items() if name != "steps"} | {
        "schedule": [[0, 23], [9, 31], [14, 19]]
    }
    result = pretrain(tiny, corpus, tmp_path / "run", data=DATA, train=train)
    found = [record["learning_rate"] for record in records(tmp_path / "run") if "loss" in record]
    known = [23] * 9 + [31] * 5 + [19] * 5
    expected = [3e-3 * min(i / (n // 10), (n - i) / (n - n // 10)) for i, n in enumerate(known)]
    assert found == pytest.approx(expected)
    assert result["steps"] == 19


def test_the_second_length(tiny, corpus, tmp_path):
    data = {"max_length": 13, "long_length": 31, "long_share": 0.4, "short_share": 0}
    config, inputs = parts(tiny, corpus, **data)
    course = course_of(config, inputs.parent, inputs.corpus, inputs.training)
    course.long_begins = Horizon(((0, 23),), 0.4).long_begins
    assert course.long_begins == 14
    longest = [max(batch.ids.shape[1] for batch in course.micro(course.rows_of(step), 7)) for step in range(23)]
    rows = [len(course.rows_of(step)) for step in range(23)]
    assert max(longest[:14]) == 13
    assert 13 < min(longest[14:]) <= max(longest) == 31
    assert rows == [7] * 14 + [2] * 9
    assert [len(batch) for batch in course.micro(course.rows_of(20), 4)] == [1, 1]
    pretrain(tiny, corpus, tmp_path / "run", data=data, train=QUICK)
    found = [record["max_length"] for record in records(tmp_path / "run") if "loss" in record]
    assert found == [13] * 14 + [31] * 9


# ------------------------------------------------------------------------------------------- where it starts


def test_new_weights_for_a_size_and_a_vocabulary(corpus, tmp_path):
    Tokenizer.from_vocabulary(PIECES).save(tmp_path / "vocab")
    done = shell()("pretrain", "--model", "tiny", "--vocab", tmp_path / "vocab", "--corpus", corpus, "--out",
                   tmp_path / "run", "--set", "train.steps=1", "--set", "train.batch_size=3", "--json")  # fmt: skip
    assert done.json["parent_sha256"] == ""
    assert "new weights for tiny (seed 1), vocabulary of 73 pieces" in done.err
    found = read_folder(tmp_path / "run" / "model")
    sizes = found.config
    assert (sizes.num_hidden_layers, sizes.hidden_size, sizes.num_attention_heads) == (2, 128, 2)
    assert (sizes.intermediate_size, sizes.vocab_size, sizes.max_position_embeddings) == (512, 73, 512)
    assert found.groups == {"encoder", "pooler", "mlm", "nsp"}
    assert found.tokenizer.vocabulary == PIECES
    assert 0.015 < found.weights["layers.1.up.weight"].std() < 0.025


def test_heads_that_are_missing_are_drawn_and_a_classifier_is_left_out(tiny, corpus, tmp_path):
    found = read_folder(tiny)
    from bert_miniatures.checkpoint import Labels

    kept = {name: array for name, array in found.weights.items() if not name.startswith(("mlm", "nsp"))}
    kept |= {"head.weight": np.ones((2, 21), np.float32), "head.bias": np.zeros(2, np.float32)}
    write_folder(
        tmp_path / "tuned", ModelFolder(found.config, kept, found.tokenizer, Labels(names=("a", "b"))), card=""
    )
    heard = Heard()
    pretrain(tmp_path / "tuned", corpus, tmp_path / "run", data=DATA, train=QUICK | {"steps": 1}, watch=heard)
    assert "the model has no masked-LM head; a new one is drawn" in heard.notes
    assert "the model has no next-sentence head; a new one is drawn" in heard.notes
    assert any("classifier is left out" in note for note in heard.notes)
    assert read_folder(tmp_path / "run" / "model").groups == {"encoder", "pooler", "mlm", "nsp"}


def test_without_pairs_the_heads_for_pairs_stay_as_they_were(tiny, corpus, tmp_path):
    result = pretrain(
        tiny, corpus, tmp_path / "run", data=DATA | {"next_sentence": False, "masking": "word"}, train=QUICK
    )
    before, after = read_folder(tiny).weights, read_folder(tmp_path / "run" / "model").weights
    assert before.keys() == after.keys()
    for name in before:
        same = np.array_equal(before[name], after[name])
        assert same == name.startswith(("pooler", "nsp")), name
    assert set(result["scores"]["held_out"]) == {"loss", "accuracy", "perplexity"}


# ------------------------------------------------------------------------------------------- resuming


def test_ctrl_c_saves_and_resume_equals_the_uninterrupted_run(whole, tiny, corpus, tmp_path):
    interrupted(tiny, corpus, tmp_path / "run")
    moved = tmp_path / "moved.txt"  # the text decides, not its name
    shutil.copy(corpus, moved)
    resumed = pretrain(tiny, moved, tmp_path / "run", data=DATA, train=QUICK, resume=True)
    assert bits(tmp_path / "run") == bits(whole)
    assert resumed["scores"] == result_of(whole)["scores"]
    assert resumed["tokens"] == result_of(whole)["tokens"]
    assert not (tmp_path / "run" / "state").exists()
    assert pretrain(tiny, corpus, tmp_path / "run", data=DATA, train=QUICK, resume=True) == resumed


def test_resume_refuses_another_text_another_vocabulary_and_other_settings(tiny, corpus, tmp_path):
    run = tmp_path / "run"
    interrupted(tiny, corpus, run)
    changed = tmp_path / "text.txt"
    changed.write_text(corpus.read_text().replace("good", "bad", 1))
    with pytest.raises(DataError, match=r"the corpus changed since .*run was begun; --overwrite"):
        pretrain(tiny, changed, run, data=DATA, train=QUICK, resume=True)
    with pytest.raises(ConfigError, match=r"train\.steps = 23, now it is 29"):
        pretrain(tiny, corpus, run, data=DATA, train=QUICK | {"steps": 29}, resume=True)
    with pytest.raises(OutputExists, match="--resume"):
        pretrain(tiny, corpus, run, data=DATA, train=QUICK)
    vocab = tmp_path / "vocab"
    Tokenizer.from_vocabulary(PIECES).save(vocab)
    settings = {"vocab": vocab, "data": DATA, "train": QUICK | {"batch_size": 3}}
    interrupted("2/128", corpus, tmp_path / "new", 2, **settings)
    Tokenizer.from_vocabulary([*PIECES[:-1], "##zz"]).save(vocab)
    with pytest.raises(DataError, match="the vocabulary changed since"):
        pretrain("2/128", corpus, tmp_path / "new", resume=True, **settings)


def command(model: Path, corpus: Path, out: Path, *more: str) -> list[str]:
    words = ["pretrain", "--model", str(model), "--corpus", str(corpus), "--out", str(out), "--max-length", "16"]
    words += ["--batch-size", "13", "--learning-rate", "3e-3", "--set", "data.long_length=31"]
    for setting in ("data.long_share=0.3", "train.threads=1", "train.save_every=0", "train.log_every=2"):
        words += ["--set", setting]
    return [*words, *more]


@pytest.mark.slow
def test_kill_9_at_random_moments(tiny, corpus, tmp_path):
    """Whenever the process dies, the resumed run ends with the same weights and the same scores, bit for bit."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    steps = ("--set", "train.steps=150")
    done = shell()(*command(tiny, corpus, whole, *steps))
    assert done.code == 0, done.err
    words = [sys.executable, "-m", "bert_miniatures", *command(tiny, corpus, killed, *steps), "--resume"]
    moments, kills = random.Random(int(os.environ.get("KILL_SEED", "17"))), 0
    for _ in range(int(os.environ.get("KILLS", "2"))):
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                                   env=os.environ | {"OMP_NUM_THREADS": "1"})  # fmt: skip
        wait_until_it_trains(process, killed)
        time.sleep(moments.uniform(0, 0.7))
        if process.poll() is None:
            process.kill()
            kills += 1
        process.wait()
        if (killed / "result.json").exists():
            assert bits(killed) == bits(whole)
            shutil.rmtree(killed)
    done = shell()(*command(tiny, corpus, killed, *steps), "--resume")
    assert done.code == 0, done.err
    assert kills
    assert bits(killed) == bits(whole)
    assert result_of(killed)["scores"] == result_of(whole)["scores"]
    timed = {"tokens_per_second", "share_of_gemm_peak"}
    first, second = ([{k: v for k, v in r.items() if k not in timed} for r in records(run)] for run in (whole, killed))
    assert first == second


def wait_until_it_trains(process: subprocess.Popen, run: Path) -> None:
    """Wait until the process has read the state of the run and gone on; what comes before takes seconds."""
    end, size = time.monotonic() + 60, None
    while process.poll() is None and time.monotonic() < end:
        now = (run / "metrics.jsonl").stat().st_mtime_ns if (run / "metrics.jsonl").is_file() else None
        if size is not None and now != size:
            return
        size = now if size is None else size
        if size is None and now is None:
            size = 0
        time.sleep(0.01)


@pytest.mark.slow
def test_two_processes_have_the_losses_of_one(still, corpus, tmp_path):
    steps = ("--set", "train.steps=17")
    both = [finish(one) for one in two(tmp_path, command(still, corpus, tmp_path / "two", *steps))]
    assert [one.code for one in both] == [0, 0], both[0].err + both[1].err
    alone = shell()(*command(still, corpus, tmp_path / "one", *steps))
    assert alone.code == 0, alone.err
    one, other = (records(tmp_path / name) for name in ("one", "two"))
    for key in ("loss", "gradient_norm", "tokens"):
        expected = [record[key] for record in one if key in record]
        assert [record[key] for record in other if key in record] == pytest.approx(expected, abs=1e-4)
    assert "2 processes share each batch of 13" in both[0].err
    assert both[1].out == ""


# ------------------------------------------------------------------------------------------- what goes wrong


def pretraining(model: object, corpus: object, out: Path, *more: object, **limits: int):
    quick = ["--set", "train.steps=3", "--set", "train.threads=1", "--max-length", 31, "--batch-size", 3]
    return shell()("pretrain", "--model", model, "--corpus", corpus, "--out", out, *quick, *more, **limits)


WRONG_TEXTS = {
    "empty.txt": (b"", "the file is empty"),
    "blank.txt": (b"\n \n", "the corpus has no words"),
    "one.txt": (b"the film was good.\nthe film was bad.\n", "next-sentence prediction needs at least 2 documents"),
    "binary.txt": (bytes(range(256)), "a NUL byte"),
    "text.gz": (b"the film was good\n", "is no .gz file"),
    "cut.txt.xz": (b"\xfd7zXZ\x00\x00\x04\xe6", "damaged or cut short"),
    "latin.txt": ("the f\u00eate\n".encode("latin-1"), "latin.txt:1: not UTF-8"),
    "text.doc": (b"the film", "unknown file type '.doc'"),
}


@pytest.mark.parametrize("name", WRONG_TEXTS)
def test_texts_that_cannot_be_used(name, tiny, tmp_path):
    content, said = WRONG_TEXTS[name]
    (tmp_path / name).write_bytes(content)
    done = pretraining(tiny, tmp_path / name, tmp_path / "run")
    assert said in done.error
    assert done.code == 2
    assert not (tmp_path / "run").exists()


def test_models_and_vocabularies_that_cannot_be_used(tiny, corpus, tmp_path):
    run, vocab = tmp_path / "run", tmp_path / "vocab"
    vocab.mkdir()
    (vocab / "vocab.txt").write_text("\n".join(piece for piece in PIECES if piece != "[MASK]") + "\n")
    assert "the vocabulary has no [MASK]" in pretraining("2/128", corpus, run, "--vocab", vocab).error
    offline = pretraining("2/128", corpus, run)
    assert offline.code == 2
    assert offline.err.startswith("error: uncased_L-2_H-128_A-2 is not on this machine")
    assert offline.err.endswith("\nor give --vocab DIR: the weights are then drawn, not fetched\n")
    assert "--vocab is for new weights" in pretraining(tiny, corpus, run, "--vocab", vocab).error
    assert "unknown model '2/129'" in pretraining("2/129", corpus, run, "--vocab", vocab).error
    assert (
        "max_length 41 is more than the model's 37 positions"
        in pretraining(tiny, corpus, run, "--max-length", 41).error
    )
    assert not run.exists()


def test_settings_that_cannot_work(tiny, corpus, tmp_path):
    run = tmp_path / "run"
    wrong = {
        "train: steps and budget both say how long the run is": ("--budget", "2h", "--set", "train.steps=3"),
        "'2 hours' is not a time": ("--budget", "2 hours"),
        "class_weights and standardise": ("--set", "train.class_weights=balanced"),
        "schedule [[3, 9]] does not ascend": ("--set", "train.schedule=[[3, 9]]"),
        "unknown setting 'data.maskng'; did you mean 'data.masking'?": ("--set", "data.maskng=word"),
        "data.long_length 20 is not more than": ("--set", "data.long_share=0.1", "--set", "data.long_length=20"),
    }
    for said, more in wrong.items():
        done = shell()("pretrain", "--model", tiny, "--corpus", corpus, "--out", run, "--max-length", 31, *more)
        assert said in done.error
        assert done.code == 2
    assert "the corpus has no files" in shell()("pretrain", "--model", tiny, "--out", run).error
    assert not run.exists()


def test_a_full_disk_and_then_room_again(tiny, corpus, tmp_path):
    run = tmp_path / "run"
    done = pretraining(
        tiny, corpus, run, "--set", "train.save_every=0", "--set", "train.log_every=1", RLIMIT_FSIZE=30_000
    )
    assert done.code == 1
    assert (
        done.error
        == f"{run / 'state' / 'state.safetensors'}: no space left on the device; nothing half-written was kept"
    )
    assert {path.name for path in run.iterdir()} <= {"run.toml", "metrics.jsonl", "state"}
    done = pretraining(tiny, corpus, run, "--set", "train.save_every=0", "--set", "train.log_every=1", "--resume")
    assert done.code == 0, done.err


def test_other_commands_say_what_such_a_run_is(whole, corpus):
    assert "a pre-training run, scored on held-out documents only" in shell()("evaluate", whole).error
    done = shell()("table", whole)
    assert f"warning: {whole}: a pre-training run, which has no task; left out" in done.err
    assert "no classifier; 'miniatures finetune' makes one" in shell()("predict", whole, corpus).error
    assert shell()("fill", whole, "The film was very [MASK].", "--top", 1).out.splitlines()[1][:2] == "0."


def test_nan_is_recorded_and_raised(tiny, corpus, tmp_path):
    with pytest.raises(Diverged, match="smaller --learning-rate"):
        pretrain(tiny, corpus, tmp_path / "run", data=DATA, train=QUICK | {"learning_rate": 1e30, "clip": 0})
    assert "the loss became" in result_of(tmp_path / "run")["finding"]
