"""A model folder or a deploy folder to a repository of the Hugging Face Hub, in one commit."""

from pathlib import Path

from bert_miniatures.checkpoint import read_folder
from bert_miniatures.errors import MissingExtra, Offline, UserError
from bert_miniatures.files import is_offline
from bert_miniatures.hub import LIBRARY, hub_errors
from bert_miniatures.models import resolve

__all__ = ["FILES", "push"]

# What is sent where it is there, and nothing else: other files of a folder may hold somebody's texts.
FILES = (
    "README.md",
    "config.json",
    "miniature.json",
    "model.safetensors",
    "onnx/model.onnx",
    "onnx/model_mapped.onnx",
    "onnx/model_quantized.onnx",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
)


def push(
    source: str | Path, repository: str, *, public: bool = False, message: str = "", offline: bool | None = None
) -> str:
    """Send a model to the Hub and return the address of the commit.

    Args:
        source: any MODEL of the command line, a run folder (its model alone, no predictions) or a deploy folder.
        repository: as in "me/support-tiny"; it is made where it does not exist.
        public: whether everybody may see a repository that is made; one that exists stays as it is.
        message: of the commit.
        offline: whether the network is forbidden; None asks `HF_HUB_OFFLINE`.

    Raises:
        UnknownName: neither a model nor a folder.
        CheckpointError: the folder is damaged, or holds no model.
        UserError: the repository's name cannot be one, or there is no token.
        Offline: the network is forbidden.
        DownloadFailed: the Hub does not answer, or refuses.

    Example:
        >>> push("runs/support", "me/support-tiny")  # doctest: +SKIP
        'https://huggingface.co/me/support-tiny/commit/6d6ad64'
    """
    folder = resolve(str(source), offline=offline)
    _check(folder)
    from huggingface_hub import CommitOperationAdd, HfApi, constants, get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise UserError(f"'{repository}' cannot be a repository: {str(error).splitlines()[0]}") from None
    address = f"{constants.ENDPOINT}/{repository}"
    if is_offline() if offline is None else offline:
        raise _offline(address)
    if get_token() is None:
        raise UserError("there is no token for the Hub; HF_TOKEN=... or 'hf auth login' gives one that may write")
    files = [name for name in FILES if (folder / name).is_file()]
    sent = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=str(folder / name)) for name in files]
    api = HfApi(library_name=LIBRARY)
    with hub_errors(address, lambda: _offline(address), "the token must be one that may write"):
        made = api.create_repo(repository, private=not public, exist_ok=True)
        done = api.create_commit(made.repo_id, sent, commit_message=message or f"Upload {folder.name} with {LIBRARY}")
    return str(done.commit_url)


def _check(folder: Path) -> None:
    """Open the folder as its users will, so that nothing damaged is sent."""
    if not (folder / "onnx").is_dir():
        read_folder(folder)
        return
    try:
        from bert_miniatures.predict_onnx import OnnxEngine
    except ImportError:
        raise MissingExtra("a deploy folder", "deploy") from None
    OnnxEngine(folder, threads=1)
    if (folder / "onnx" / "model_quantized.onnx").is_file():
        OnnxEngine(folder, threads=1, precision="int8")


def _offline(address: str) -> Offline:
    return Offline(f"{address}: the network is forbidden (--offline, HF_HUB_OFFLINE); push without it")
