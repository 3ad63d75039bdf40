"""`fetch` and `convert`, against servers on this machine that speak the real protocols."""

import json
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from bert_miniatures import models
from bert_miniatures.cli import main
from bert_miniatures.zoo import ZOO, Miniature
from loopback import Hub, Repository, Server, make_zip, miniatures, python

TINY = ZOO["2/128"]
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz", *(f"##{c}" for c in "abcdefgh")]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the Hub has it: random weights with both heads, and no tokenizer files."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("published")
    torch.manual_seed(1)
    config = transformers.BertConfig(
        vocab_size=len(PIECES), hidden_size=128, num_hidden_layers=2, num_attention_heads=2, intermediate_size=512
    )
    model = transformers.BertForPreTraining(config)
    model.save_pretrained(folder)  # model.safetensors and config.json
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    (folder / "vocab.txt").write_text("\n".join(PIECES) + "\n")
    return folder


def files(folder: Path, *names: str) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in ("config.json", "vocab.txt", *names)}


@pytest.fixture
def hub(published: Path) -> Iterator[Hub]:
    repository = Repository(files(published, "model.safetensors") | {"tf_model.h5": b"x", "README.md": b"x"})
    with Server() as large, Hub({TINY.hub: repository}, large) as server:
        yield server


@pytest.fixture
def google(published: Path, tmp_path: Path) -> Iterator[Server]:
    archive = make_zip(tmp_path / "made.zip", files(published, "model.safetensors"))
    with Server({f"/{TINY.official}.zip": archive.read_bytes()}) as server:
        server.goog_hash = True
        yield server
    archive.unlink()


def opens(path: Path, published: Path) -> None:
    """transformers opens the folder and has the numbers that were published."""
    import torch
    import transformers

    theirs = transformers.AutoModelForPreTraining.from_pretrained(published).state_dict()
    ours = transformers.AutoModelForPreTraining.from_pretrained(path).state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor), name
    transformers.AutoModel.from_pretrained(path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    assert tokenizer.model_max_length == 512
    assert tokenizer("abc")["input_ids"] == [PIECES.index(piece) for piece in ("[CLS]", "a", "##b", "##c", "[SEP]")]


Here = Callable[..., tuple[int, str, str]]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Here:
    """Run the command line in this process, which is faster; no socket may be opened. Gives code, stdout, stderr."""
    monkeypatch.setenv("MINIATURES_HOME", str(tmp_path / "ours"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")  # --offline sets it

    class NoSocket(socket.socket):
        def __init__(self, *arguments: object) -> None:
            raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", NoSocket)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["miniatures", *arguments])
        capsys.readouterr()
        code = 0
        try:
            main()
        except SystemExit as ended:
            code = int(ended.code or 0)
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def done(run: subprocess.CompletedProcess[str]) -> str:
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


# ------------------------------------------------------------------------------------------------ fetch


def test_fetch_from_the_hub_gives_a_folder_that_transformers_opens(hub: Hub, published: Path, tmp_path: Path) -> None:
    """The weights as the 24 have them there: a pickle, on another server; and a token."""
    hub.token, hub.repositories[TINY.hub].files = "hf_loopback", files(published, "pytorch_model.bin")
    path = Path(done(miniatures(tmp_path, "fetch", "tiny", HF_ENDPOINT=hub.url, HF_TOKEN=hub.token)))
    assert path == tmp_path / "ours" / "models" / TINY.official
    opens(path, published)
    asked = {request.path.rpartition("/")[2] for request in hub.asked}
    assert asked == {f"bert_{TINY.official}", "config.json", "vocab.txt", "pytorch_model.bin"}
    assert hub.large is not None
    assert [request.headers.get("authorization") for request in hub.large.asked] == [None]  # the token stays at the Hub
    again = miniatures(tmp_path, "fetch", "2/128", "--offline", guard=True)
    assert (done(again), again.stderr) == (str(path), "already there; --overwrite makes it again\n")


def test_an_output_that_exists_is_refused_before_the_download(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    run = miniatures(tmp_path, "fetch", "tiny", "--out", str(tmp_path), HF_ENDPOINT=hub.url)
    assert run.returncode == 2
    assert run.stderr == f"error: {tmp_path} exists and is not empty; give another path or --overwrite\n"
    assert hub.asked == []


def test_a_wrong_token_is_said(hub: Hub, tmp_path: Path) -> None:
    hub.token = "hf_loopback"
    run = miniatures(tmp_path, "fetch", "tiny", HF_ENDPOINT=hub.url)
    assert run.returncode == 1
    assert f"error: {hub.url}/{TINY.hub}: HTTP 401; HF_TOKEN and HF_ENDPOINT decide" in run.stderr


def test_safetensors_are_preferred(hub: Hub, published: Path, tmp_path: Path) -> None:
    hub.repositories[TINY.hub].files["pytorch_model.bin"] = b"not asked for"
    document = json.loads(done(miniatures(tmp_path, "fetch", TINY.hub, "--json", HF_ENDPOINT=hub.url)))
    assert not any("pytorch_model.bin" in request.path for request in hub.asked)
    opens(Path(document.pop("path")), published)
    assert document.pop("repaired")
    assert document == {
        "model": TINY.official, "size": "2/128", "source": "hub",
        "source_format": "safetensors", "tensors": 46, "skipped": [],
    }  # fmt: skip


def test_a_cut_download_from_the_hub_is_continued(hub: Hub, published: Path, tmp_path: Path) -> None:
    assert hub.large is not None
    hub.large.cuts = [400_000]
    opens(Path(done(miniatures(tmp_path, "fetch", "tiny", HF_ENDPOINT=hub.url))), published)
    assert len(hub.large.asked) == 2


def test_what_the_hubs_cache_has_is_converted_offline(hub: Hub, published: Path, tmp_path: Path) -> None:
    path = Path(done(miniatures(tmp_path, "fetch", "tiny", HF_ENDPOINT=hub.url)))
    (path / "config.json").unlink()
    out = tmp_path / "out"
    assert done(miniatures(tmp_path, "fetch", "tiny", "--offline", "--out", str(out), guard=True)) == str(out)
    opens(out, published)


def test_a_hub_that_is_down_leads_to_google(google: Server, published: Path, tmp_path: Path) -> None:
    run = miniatures(tmp_path, "fetch", "tiny", MINIATURES_GOOGLE_URL=google.url)
    opens(Path(done(run)), published)
    assert f"http://127.0.0.1:9/{TINY.hub}: ConnectError" in run.stderr
    assert "trying Google's archive instead" in run.stderr
    assert not (
        tmp_path / "ours" / "downloads" / f"{TINY.official}.zip"
    ).exists()  # what is converted is not kept twice
    assert list((tmp_path / "ours" / "raw").iterdir()) == []


def test_a_hub_that_fails_leads_to_google(hub: Hub, google: Server, tmp_path: Path) -> None:
    hub.statuses = [503]
    run = miniatures(tmp_path, "fetch", "tiny", HF_ENDPOINT=hub.url, MINIATURES_GOOGLE_URL=google.url)
    done(run)
    assert f"{hub.url}/{TINY.hub}: HTTP 503\n" in run.stderr


def test_without_torch_googles_archive_is_taken(hub: Hub, google: Server, published: Path, tmp_path: Path) -> None:
    hub.repositories[TINY.hub].files = files(published, "pytorch_model.bin")
    code = "import sys\nsys.modules['torch'] = None\nfrom bert_miniatures.cli import main\nmain()\n"
    env = {"HF_ENDPOINT": hub.url, "MINIATURES_GOOGLE_URL": google.url}
    run = python(code, tmp_path, "fetch", "tiny", **env)
    done(run)
    assert (
        "reading pytorch_model.bin, all that the Hub has of uncased_L-2_H-128_A-2, needs the 'train' extra"
        in run.stderr
    )


def test_when_nobody_has_it_every_address_is_named(hub: Hub, tmp_path: Path) -> None:
    with Server() as empty:
        run = miniatures(tmp_path, "fetch", "tiny", MINIATURES_GOOGLE_URL=empty.url)
        assert run.returncode == 1
        assert f"http://127.0.0.1:9/{TINY.hub}: ConnectError" in run.stderr
        assert f"{empty.url}/{TINY.official}.zip: HTTP 404" in run.stderr
        assert "miniatures fetch 2/128 --archive FILE" in run.stderr
    assert "Traceback" not in run.stderr
    hub.repositories.clear()
    run = miniatures(tmp_path, "fetch", "tiny", HF_ENDPOINT=hub.url)
    assert run.returncode == 1
    assert f"{hub.url}/{TINY.hub}: HTTP 404" in run.stderr


def test_a_repository_without_a_vocabulary_is_refused(hub: Hub, tmp_path: Path) -> None:
    del hub.repositories[TINY.hub].files["vocab.txt"]
    run = miniatures(tmp_path, "fetch", "tiny", HF_ENDPOINT=hub.url)
    assert run.returncode == 1
    assert f"{hub.url}/{TINY.hub}: has no vocab.txt; try --from google" in run.stderr


def test_what_is_not_a_hub_is_said(tmp_path: Path) -> None:
    with Server({f"/api/models/{TINY.hub}": b"<html>please log in</html>"}) as portal, Server() as empty:
        env = {"HF_ENDPOINT": portal.url, "MINIATURES_GOOGLE_URL": empty.url}
        run = miniatures(tmp_path, "fetch", "tiny", **env)
    assert run.returncode == 1
    assert f"{portal.url}/{TINY.hub}: JSONDecodeError" in run.stderr


def test_two_processes_fetch_once_and_both_get_it(google: Server, published: Path, tmp_path: Path) -> None:
    google.delay = 1.0
    code = "from bert_miniatures.models import resolve\nprint(resolve('tiny'))\n"
    starter = f"""
import subprocess, sys
runs = [subprocess.Popen([sys.executable, "-c", {code!r}], stdout=subprocess.PIPE, text=True) for _ in range(3)]
print(*(run.communicate()[0].strip() for run in runs), *(run.returncode for run in runs), sep="\\n")
"""
    run = python(starter, tmp_path, MINIATURES_GOOGLE_URL=google.url)
    path = tmp_path / "ours" / "models" / TINY.official
    assert run.stdout.split() == [str(path)] * 3 + ["0"] * 3, run.stderr
    assert len(google.asked) == 1
    opens(path, published)
    assert [file.name for file in path.parent.iterdir() if not file.name.endswith(".lock")] == [TINY.official]


def test_googles_tensorflow_checkpoint_becomes_a_model_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The archive as Google packs it, with a checkpoint that TensorFlow wrote."""
    from safetensors.numpy import load_file

    fixture = Path(__file__).parent / "fixtures" / "tf"
    archive = make_zip(
        tmp_path / "a.zip", {path.name: path.read_bytes() for path in (fixture / "pretrained").iterdir()}
    )
    model = Miniature(layers=2, width=12)
    monkeypatch.setenv("MINIATURES_HOME", str(tmp_path / "ours"))
    with Server({f"/{model.official}.zip": archive.read_bytes()}) as server:
        monkeypatch.setenv("MINIATURES_GOOGLE_URL", server.url)
        got = models.obtain(model, tmp_path / "out", source="google", offline=False)
    assert got.conversion is not None
    assert (got.source, got.conversion.source_format) == ("google", "tensorflow")
    written = load_file(fixture / "pretrained.safetensors")["bert/embeddings/word_embeddings"]
    converted = load_file(tmp_path / "out" / "model.safetensors")["bert.embeddings.word_embeddings.weight"]
    np.testing.assert_array_equal(converted, written)


def test_fetch_from_an_archive_or_folder(here: Here, published: Path, tmp_path: Path) -> None:
    listed = files(published, "model.safetensors")
    archive = make_zip(tmp_path / "all.zip", {f"{TINY.official}/{name}": data for name, data in listed.items()})
    first, second = tmp_path / "first", tmp_path / "second"
    code, out, err = here("fetch", "tiny", "--archive", str(archive), "--out", str(first))
    assert (code, out) == (0, f"{first}\n")
    assert "46 tensors, read as safetensors\nrepaired: " in err
    opens(first, published)
    folder = ("--archive", str(published), "--out", str(second))
    assert here("fetch", "tiny", *folder)[:2] == (0, f"{second}\n")
    opens(second, published)
    code, _, err = here("fetch", "tiny", *folder)
    assert (code, err) == (2, f"error: {second} exists and is not empty; give another path or --overwrite\n")
    assert here("fetch", "tiny", *folder, "--overwrite")[0] == 0
    code, _, err = here("fetch", "mini", "--archive", str(published))
    assert code == 2
    assert "this is a model of size 2/128; expected 4/256 (uncased_L-4_H-256_A-4)" in err
    assert archive.exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["tinny"], "error: unknown model 'tinny'; did you mean 'tiny'?"),
        (["tiny", "--from", "gogle"], "error: unknown source 'gogle'; did you mean 'google'?"),
        (["tiny", "--from", "hub", "--archive", "x.zip"], "error: --from and --archive exclude each other"),
        (["tiny", "--archive", "none.zip"], "error: none.zip: no such file"),
        (["tiny", "--from", "google", "--offline"], "error: uncased_L-2_H-128_A-2 is not on this machine"),
    ],
)
def test_wrong_use_is_one_sentence_and_exit_2(arguments: list[str], said: str, here: Here) -> None:
    code, out, err = here("fetch", *arguments)
    assert (code, out) == (2, "")
    assert err.startswith(said)


def test_a_checkpoint_that_cannot_be_converted_is_not_kept(google: Server, published: Path, tmp_path: Path) -> None:
    listed = files(published, "model.safetensors")
    listed["model.safetensors"] = listed["model.safetensors"][:-1]
    google.files[f"/{TINY.official}.zip"] = make_zip(tmp_path / "bad.zip", listed).read_bytes()
    run = miniatures(tmp_path, "fetch", "tiny", "--from", "google", MINIATURES_GOOGLE_URL=google.url)
    assert run.returncode == 2
    assert "model.safetensors: not a whole safetensors file" in run.stderr
    kept = [path.name for path in (tmp_path / "ours").rglob("*") if path.is_file() and not path.name.endswith(".lock")]
    assert kept == []


# ------------------------------------------------------------------------------------------------ convert


def test_convert_prints_what_it_did(here: Here, published: Path, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    for name, data in files(published, "model.safetensors").items():
        (source / name).write_bytes(data)
    code, out, _ = here("convert", str(source), str(target))
    lines = out.splitlines()
    assert code == 0
    assert lines[:2] == [str(target), "46 tensors, read as safetensors"]
    assert any(line.startswith("repaired: tokenizer_config.json was missing") for line in lines)
    opens(target, published)
    assert here("convert", str(source), str(target))[0] == 2
    code, out, _ = here("convert", str(target), str(tmp_path / "again"), "--json")
    assert json.loads(out) == {
        "path": str(tmp_path / "again"), "source_format": "safetensors", "tensors": 46, "skipped": [], "repaired": []
    }  # fmt: skip
    opens(tmp_path / "again", published)


def test_convert_of_an_archive_says_what_to_type(here: Here, tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "a.zip", {"vocab.txt": b""})
    code, _, err = here("convert", str(archive), "out")
    assert code == 2
    assert f"'miniatures fetch MODEL --archive {archive} --out out' opens it" in err


def test_numbers_survive_the_whole_way(here: Here, published: Path, tmp_path: Path) -> None:
    """Float for float: a published tensor, through archive and conversion, is the tensor in our folder."""
    from safetensors.numpy import load_file

    archive = make_zip(tmp_path / f"{TINY.official}.zip", files(published, "model.safetensors"))
    out = Path(here("fetch", "tiny", "--archive", str(archive))[1].strip())
    theirs, ours = load_file(published / "model.safetensors"), load_file(out / "model.safetensors")
    for name in theirs.keys() & ours.keys():
        np.testing.assert_array_equal(ours[name], theirs[name])
    assert len(theirs.keys() & ours.keys()) >= 44
