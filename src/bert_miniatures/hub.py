"""The Hugging Face Hub: where its cache keeps a repository, and what its library raises as one sentence.

Every `HF_*` variable means what it means to `huggingface_hub`.
"""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bert_miniatures.errors import DownloadFailed, Offline
from bert_miniatures.transfer import Unreachable

__all__ = ["LIBRARY", "TIMEOUT", "hub_errors", "hub_folder", "snapshots"]

LIBRARY = "bert-miniatures"  # how we call ourselves to the Hub
TIMEOUT = 30.0  # seconds


def hub_folder(repository: str, kind: str = "model") -> Path:
    """Return the folder of a repository in the Hub's cache, which may not be there.

    Args:
        repository: as in "nyu-mll/glue".
        kind: "model" or "dataset".
    """
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"{kind}s--{repository.replace('/', '--')}"


def snapshots(folder: Path) -> list[Path]:
    """Return the snapshots of a repository in the Hub's cache, whole or not: that of `main` first, then the newest."""
    found = sorted((folder / "snapshots").glob("*"), key=lambda path: path.stat().st_mtime, reverse=True)
    with contextlib.suppress(OSError):
        found.insert(0, folder / "snapshots" / (folder / "refs" / "main").read_text().strip())
    return list(dict.fromkeys(found))


@contextlib.contextmanager
def hub_errors(address: str, offline: Callable[[], Offline], hint: str = "") -> Iterator[None]:
    """Turn what huggingface_hub raises into one sentence with the address.

    Args:
        address: of the repository.
        offline: makes the error for a network that is forbidden.
        hint: what else to try where the Hub refuses.

    Raises:
        Offline: the network is forbidden.
        Unreachable: the Hub does not answer, or cannot just now.
        DownloadFailed: it refuses.
    """
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    transport: Any = HfHubHTTPError.__bases__[0]  # HTTPError of the HTTP library that this huggingface_hub uses
    try:
        yield
    except OfflineModeIsEnabled:
        raise offline() from None
    except LocalEntryNotFoundError as error:
        raise Unreachable(f"{address}: {_short(error.__cause__ or error)}") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        kind = Unreachable if status >= 500 or status == 429 else DownloadFailed
        said = f"; HF_TOKEN and HF_ENDPOINT decide what is seen there{hint and '; '}{hint}" * (status < 429)
        raise kind(f"{address}: HTTP {status}{said}") from error
    except (transport, ConnectionError, RuntimeError, ValueError) as error:  # RuntimeError: hf_xet, ValueError: no JSON
        raise Unreachable(f"{address}: {_short(error)}") from error
    except OSError as error:
        if error.errno is not None:
            raise
        raise DownloadFailed(f"{address}: {_short(error)}") from error


def _short(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
