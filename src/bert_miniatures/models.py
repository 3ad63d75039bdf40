"""From what the user calls a model to a model folder that is ready to load; fetched and converted when it must be."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bert_miniatures.download import Source, fetch, forget, google_url, held, hub_snapshot
from bert_miniatures.errors import CheckpointError, DownloadFailed, MissingExtra, OutputExists, UnknownName
from bert_miniatures.files import cache_folder, is_offline
from bert_miniatures.transfer import Unreachable, locked, say
from bert_miniatures.zoo import Miniature, lookup

if TYPE_CHECKING:
    from bert_miniatures.checkpoint import Conversion

__all__ = ["Obtained", "converted", "is_model", "obtain", "resolve"]

STARTER = Path(__file__).with_name("starter")


@dataclass(frozen=True)
class Obtained:
    """What `obtain` did.

    Attributes:
        path: the model folder.
        source: where the raw files are from: "hub", "google", the archive's path, or "cache" for a folder that was
            converted earlier.
        conversion: None where the folder was there already.
    """

    path: Path
    source: str
    conversion: "Conversion | None"


def resolve(name: str, *, offline: bool | None = None) -> Path:
    """Return the folder of the model that the user named; fetch and convert it where it is not on this machine.

    A name from the table of 24 means that model, also where a folder of the same name is near: `./tiny` is the folder.

    Args:
        name: a nickname, a size, an official name, `starter`, a model folder, or the folder of a run.
        offline: whether the network is forbidden; None asks `HF_HUB_OFFLINE`.

    Raises:
        UnknownName: neither a model nor a folder.
        CheckpointError: the folder holds no model.
        Offline: not on this machine, and the network is forbidden.
        DownloadFailed: no source could give it.

    Example:
        >>> resolve("runs/first/model")  # doctest: +SKIP
        PosixPath('runs/first/model')
    """
    if name == "starter":
        return STARTER
    try:
        model = lookup(name)
    except UnknownName:
        if Path(name).exists():
            return _folder(Path(name))
        raise
    if Path(name).is_dir():
        say(f"'{name}' is taken as the published model; ./{name} is the folder")
    target = converted(model)
    if not is_model(target):
        obtain(model, target, offline=offline)
    return target


def converted(model: Miniature) -> Path:
    """Return where the converted folder of the model is, or would be."""
    return cache_folder() / "models" / model.official


def is_model(path: Path) -> bool:
    """Tell whether a model folder is there; such a folder is renamed into place, so it is whole."""
    return (path / "config.json").is_file() and (path / "model.safetensors").is_file()


def obtain(
    model: Miniature,
    target: Path,
    *,
    source: Source | None = None,
    archive: Path | None = None,
    offline: bool | None = None,
    overwrite: bool = False,
) -> Obtained:
    """Make a model folder at `target` from the raw files of one of the 24, wherever they are.

    Several processes may ask for the same folder: one works, the others wait and take what it made.

    Args:
        source: the Hub or Google; None takes what is on this machine, else the Hub, else Google.
        archive: a `.zip`, `.tar.gz` or folder to take the files from, and nothing else.
        offline: whether the network is forbidden; None asks `HF_HUB_OFFLINE`.
        overwrite: make it again where it is there already.

    Raises:
        Offline: not on this machine, and the network is forbidden.
        DownloadFailed: no source could give it.
        CheckpointError: the files are damaged or of another model.
        OutputExists: `target` is not empty and `overwrite` is false.
    """
    offline = is_offline() if offline is None else offline
    with locked(converted(model)):
        if not overwrite and target == converted(model) and is_model(target):
            return Obtained(target, "cache", None)
        if not overwrite and target.exists() and (target.is_file() or any(target.iterdir())):  # before the download
            raise OutputExists(f"{target} exists and is not empty; give another path or --overwrite")
        if archive is not None:
            return _convert(model, str(archive), fetch(model, archive=archive), target, overwrite)
        if source is not None:
            return _convert(model, source, fetch(model, source=source, offline=offline), target, overwrite)
        return _first_that_works(model, target, offline, overwrite)


def _first_that_works(model: Miniature, target: Path, offline: bool, overwrite: bool) -> Obtained:
    if target != converted(model) and is_model(converted(model)):
        return _convert(model, "cache", converted(model), target, overwrite)
    if held(model) and not hub_snapshot(model):  # an archive that was downloaded and not converted yet
        return _convert(model, "google", fetch(model, source="google", offline=offline), target, overwrite)
    try:
        return _convert(model, "hub", fetch(model, source="hub", offline=offline), target, overwrite)
    except (Unreachable, MissingExtra) as reason:
        if offline:
            raise
        say(f"{reason}\ntrying Google's archive instead")
        try:
            raw = fetch(model, source="google", offline=offline)
        except DownloadFailed as error:
            raise DownloadFailed(
                f"{model.official} could not be fetched\n  {reason}\n  {error}\n"
                f"with {google_url(model)} from elsewhere: miniatures fetch {model.size} --archive FILE"
            ) from error
        return _convert(model, "google", raw, target, overwrite)


def _convert(model: Miniature, source: str, raw: Path, target: Path, overwrite: bool) -> Obtained:
    """Convert, then drop the raw files from our cache; where they are bad a later try must not find them again."""
    from bert_miniatures.checkpoint import convert

    try:
        conversion = convert(raw, target, overwrite=overwrite)
    except CheckpointError:
        forget(model)
        raise
    forget(model)
    return Obtained(target, source, conversion)


def _folder(path: Path) -> Path:
    """Return the model folder at `path`: itself, or the model that a run keeps."""
    if not path.is_dir():
        raise CheckpointError(
            f"{path} is a file; expected a model folder ('miniatures convert' makes one from a checkpoint, "
            "'miniatures fetch MODEL --archive' from an archive)"
        )
    if (path / "config.json").is_file() or (path / "bert_config.json").is_file():
        return path
    if (path / "model" / "config.json").is_file():
        return path / "model"
    what = "a run that has kept no model yet" if (path / "run.toml").is_file() else "no model folder: no config.json"
    raise CheckpointError(f"{path}: {what}")
