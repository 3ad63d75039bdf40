"""Raw checkpoints from where they are published: the Hugging Face Hub, Google's archives, or a file on this machine.

The Hub's files stay in the Hub's own cache, and every `HF_*` variable means what it means to `huggingface_hub`.
Google's archives go to our cache. Where the network may not be used no socket is opened.
"""

import os
import shutil
from pathlib import Path
from typing import Literal

from bert_miniatures.archive import find_model
from bert_miniatures.errors import CheckpointError, DownloadFailed, MissingExtra, Offline
from bert_miniatures.files import cache_folder, disk_full_is_an_error, is_offline, read_json
from bert_miniatures.hub import LIBRARY, TIMEOUT, hub_errors, hub_folder, snapshots
from bert_miniatures.transfer import download, say
from bert_miniatures.zoo import Miniature

__all__ = ["Source", "fetch", "forget", "google_url", "held", "hub_snapshot"]

Source = Literal["hub", "google"]

_CONFIG, _VOCABULARY = "config.json", "vocab.txt"
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # the first that is there
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")  # where they are there


def fetch(
    model: Miniature, *, source: Source = "hub", archive: Path | None = None, offline: bool | None = None
) -> Path:
    """Return a folder with one model's raw files: a config, a vocabulary and weights, as published.

    Args:
        model: which of the 24.
        source: the Hub, or Google's archive.
        archive: a `.zip`, `.tar.gz` or folder on this machine, taken instead of either.
        offline: whether the network is forbidden; None asks `HF_HUB_OFFLINE`.

    Raises:
        Offline: the files are not on this machine and the network is forbidden.
        Unreachable: the server does not answer.
        DownloadFailed: the server refuses, or the bytes do not match their checksum.
        CheckpointError: the archive is damaged, unsafe, or does not hold this model.
        MissingExtra: the Hub has the weights as a pickle only, and torch is not there to read it.
    """
    raw = cache_folder() / "raw" / model.official
    if archive is not None:
        found = find_model(Path(archive), model, raw)
    elif source == "hub":
        found = _from_hub(model, is_offline() if offline is None else offline)
    else:
        found = _from_google(model, raw, is_offline() if offline is None else offline)
    try:
        _check_sizes(found, model, str(archive or found))
    except CheckpointError:
        forget(model)
        raise
    return found


def forget(model: Miniature) -> None:
    """Remove what `fetch` put into our cache for this model; the Hub's cache is left alone."""
    shutil.rmtree(cache_folder() / "raw" / model.official, ignore_errors=True)
    _archive_file(model).unlink(missing_ok=True)


def held(model: Miniature) -> bool:
    """Tell whether Google's archive of the model was downloaded and not converted yet."""
    return _archive_file(model).is_file()


def google_url(model: Miniature) -> str:
    """Return the address of Google's archive; `MINIATURES_GOOGLE_URL` puts another base address in its place."""
    mirror = os.environ.get("MINIATURES_GOOGLE_URL")
    return f"{mirror.rstrip('/')}/{model.official}.zip" if mirror else model.google_zip


def _check_sizes(folder: Path, model: Miniature, where: str) -> None:
    path = next((folder / name for name in (_CONFIG, "bert_config.json") if (folder / name).is_file()), None)
    config = read_json(path) if path else None
    if not isinstance(config, dict):
        raise CheckpointError(f"{where}: no config.json or bert_config.json with the model's sizes")
    size = f"{config.get('num_hidden_layers')}/{config.get('hidden_size')}"
    if size != model.size:
        raise CheckpointError(f"{where}: this is a model of size {size}; expected {model.size} ({model.official})")


# ------------------------------------------------------------------------------------------------ places


def _archive_file(model: Miniature) -> Path:
    return cache_folder() / "downloads" / f"{model.official}.zip"


def hub_snapshot(model: Miniature) -> Path | None:
    """Return the complete snapshot of the model in the Hub's cache, without the network, or None."""
    return next((path for path in snapshots(hub_folder(model.hub)) if not _lacks(path)), None)


def _lacks(snapshot: Path) -> list[str]:
    lacks = [name for name in (_CONFIG, _VOCABULARY) if not (snapshot / name).is_file()]
    return lacks + ([] if any((snapshot / name).is_file() for name in _WEIGHTS) else ["weights"])


def _not_here(model: Miniature) -> Offline:
    """Say what is missing, where it was looked for, and how to bring it here."""
    from huggingface_hub import constants

    looked = [f"{cache_folder() / 'models' / model.official}: not there", f"{_archive_file(model)}: not there"]
    there = list((hub_folder(model.hub) / "snapshots").glob("*"))
    looked += [f"{path}: without {' and '.join(_lacks(path))}" for path in there if _lacks(path)]
    looked += [] if there else [f"{hub_folder(model.hub)}: not there"]
    places = "".join(f"\n  {place}" for place in looked)
    return Offline(
        f"{model.official} is not on this machine, and --offline or HF_HUB_OFFLINE forbids to fetch it; looked in"
        f"{places}\nWhere there is a network, get {google_url(model)}\n"
        f"  (or the files of {constants.ENDPOINT}/{model.hub}), bring it here, then type\n"
        f"  miniatures fetch {model.nickname or model.size} --archive {model.official}.zip"
    )


# ------------------------------------------------------------------------------------------------ the Hub


def _from_hub(model: Miniature, offline: bool) -> Path:
    snapshot = hub_snapshot(model)
    if snapshot is not None:
        return snapshot
    if offline:
        raise _not_here(model)
    from huggingface_hub import constants

    say(f"fetching {model.hub} from {constants.ENDPOINT}")
    address = f"{constants.ENDPOINT}/{model.hub}"
    errors = hub_errors(address, lambda: _not_here(model), "--from google asks nobody")
    with disk_full_is_an_error(hub_folder(model.hub)), errors:
        for _ in range(2):  # twice where the repository changes between two files
            folders = {Path(_hub_file(model, name)).parent for name in _hub_files(model)}
            if len(folders) == 1:
                return folders.pop()
    raise DownloadFailed(f"{address}: changes while it is read; try again")


def _hub_files(model: Miniature) -> list[str]:
    """Choose from what the repository holds."""
    from importlib.util import find_spec

    from huggingface_hub import HfApi, constants

    info = HfApi(library_name=LIBRARY).model_info(model.hub, timeout=TIMEOUT)
    there = {file.rfilename for file in info.siblings or []}
    weights = next((name for name in _WEIGHTS if name in there), "weights")
    lacks = [name for name in (_CONFIG, _VOCABULARY, weights) if name not in there]
    if lacks:
        raise DownloadFailed(f"{constants.ENDPOINT}/{model.hub}: has no {' and no '.join(lacks)}; try --from google")
    if weights == _WEIGHTS[1] and find_spec("torch") is None:
        raise MissingExtra(f"reading {weights}, all that the Hub has of {model.official},", "train")
    return [_CONFIG, _VOCABULARY, *(name for name in _TOKENIZER if name in there), weights]


def _hub_file(model: Miniature, name: str) -> str:
    from huggingface_hub import hf_hub_download

    return hf_hub_download(model.hub, name, library_name=LIBRARY)


# ------------------------------------------------------------------------------------------------ Google


def _from_google(model: Miniature, raw: Path, offline: bool) -> Path:
    archive = _archive_file(model)
    if not archive.is_file():
        if offline:
            raise _not_here(model)
        download(google_url(model), archive)
    try:
        return find_model(archive, model, raw)
    except CheckpointError as error:  # the next try downloads it again
        archive.unlink(missing_ok=True)
        raise DownloadFailed(f"{google_url(model)}: {error}") from error
