"""A sentence encoder as teacher: a BERT folder, how its hidden states become one vector, and the vectors of texts.

Source: Reimers and Gurevych 2019, "Sentence-BERT", section 3; the folders are those of the library
sentence-transformers (`modules.json`, `1_Pooling/config.json`, `sentence_bert_config.json`).
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bert_miniatures.checkpoint import ModelFolder, read_folder
from bert_miniatures.data.batches import Dataset, by_length
from bert_miniatures.errors import CheckpointError, ConfigError, DataError
from bert_miniatures.files import read_json
from bert_miniatures.model import Bert, build
from bert_miniatures.tokenizer import Encoded, Tokenizer

__all__ = ["Pooling", "Precision", "Teacher", "TeacherFolder", "check_readable", "read_teacher"]

Pooling = Literal["mean", "cls"]
Precision = Literal["fp32", "bf16"]
Ints = npt.NDArray[np.int64]

_OLD_KEYS = {"pooling_mode_cls_token": "cls", "pooling_mode_mean_tokens": "mean"}
_POSITIONS = {"cpu": 4096, "cuda": 131_072}  # in a batch


@dataclass(frozen=True)
class TeacherFolder:
    """What a teacher's folder says.

    Attributes:
        pooling: the vector of a text is the mean of its hidden states, special tokens included, or that of [CLS].
        normalised: vectors have length 1.
        max_length: in its word pieces, special tokens included.
    """

    folder: Path
    model: ModelFolder
    pooling: Pooling
    normalised: bool
    max_length: int

    @property
    def width(self) -> int:
        """Numbers of a vector."""
        return self.model.config.hidden_size

    @property
    def fingerprint(self) -> str:
        """SHA-256 of everything that decides the vectors."""
        parts = [self.model.fingerprint, self.model.tokenizer.fingerprint, self.pooling, self.normalised]
        return hashlib.sha256(json.dumps([*parts, self.max_length]).encode()).hexdigest()


def read_teacher(folder: Path, pooling: Pooling | None = None) -> TeacherFolder:
    """Read a teacher.

    Args:
        folder: a model folder of the BERT family, as sentence-transformers writes it, or any other.
        pooling: for folders that do not say; vectors are then normalised.

    Raises:
        CheckpointError: the folder is damaged, or makes its vectors in a way that is not supported.
        ConfigError: nobody says how hidden states become a vector, or `pooling` says something else than the folder.
    """
    model = read_folder(folder)
    said, normalised = _modules(folder, model.config.hidden_size)
    if said is None and pooling is None:
        raise ConfigError(
            f"{folder} does not say how a text's vector is made (no modules.json); --set teacher.pooling=mean or cls"
        )
    if said is not None and pooling not in (None, said):
        raise ConfigError(f"{folder} was trained with pooling '{said}', not '{pooling}'; leave out teacher.pooling")
    most = _optional(folder / "sentence_bert_config.json").get("max_seq_length") or 2**30
    length = min(int(most), model.config.max_position_embeddings)
    return TeacherFolder(folder, model, said or pooling or "mean", normalised, length)


def _modules(folder: Path, width: int) -> tuple[Pooling | None, bool]:
    """Return pooling and whether vectors are normalised, as modules.json says; None and true where there is none."""
    path = folder / "modules.json"
    if not path.is_file():
        return None, True
    modules = read_json(path)
    try:
        kinds = [str(module["type"]).rsplit(".", 1)[-1] for module in modules]
        places = [folder / module["path"] for module in modules]
    except (TypeError, KeyError):
        raise CheckpointError(f"{path}: expected a list of objects with 'type' and 'path'") from None
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise CheckpointError(f"{path}: {', '.join(kinds)} is not supported; Transformer, Pooling and Normalize are")
    prompts = _optional(folder / "config_sentence_transformers.json")
    if prompts.get("default_prompt_name"):
        raise CheckpointError(f"{folder}: teachers with a prompt before each text are not supported")
    return _pooling(places[1] / "config.json", width), kinds[-1] == "Normalize"


def _pooling(path: Path, width: int) -> Pooling:
    try:
        document = _mapping(path, read_json(path))
    except DataError as error:
        raise CheckpointError(str(error)) from None
    given = document.get("embedding_dimension", document.get("word_embedding_dimension", width))
    if given != width:
        raise CheckpointError(f"{path}: vectors of {given} numbers, config.json says {width}")
    modes = document.get("pooling_mode")
    if modes is None:
        modes = [_OLD_KEYS.get(key, key) for key, on in document.items() if key.startswith("pooling_mode_") and on]
    modes = [modes] if isinstance(modes, str) else list(modes)
    if modes == ["mean"]:
        return "mean"
    if modes == ["cls"]:
        return "cls"
    raise CheckpointError(f"{path}: pooling {' and '.join(map(str, modes)) or 'nothing'} is not supported; mean and "
                          "cls are")  # fmt: skip


def _optional(path: Path) -> Mapping[str, Any]:
    return _mapping(path, read_json(path)) if path.is_file() else {}


def _mapping(path: Path, document: Any) -> Mapping[str, Any]:
    if not isinstance(document, dict):
        raise CheckpointError(f"{path}: expected an object")
    return document


def check_readable(read: TeacherFolder, student: Tokenizer) -> None:
    """Refuse a teacher that tells capital letters from small ones where the student's pieces have none.

    Raises:
        ConfigError: it is one.
    """
    own = read.model.tokenizer
    if own.vocabulary != student.vocabulary and student.lowercase and not own.lowercase:
        raise ConfigError(
            f"{read.folder}: a cased teacher cannot read the pieces of an uncased student; give an uncased one"
        )


class Teacher:
    """Makes vectors, on a GPU where there is one.

    Args:
        read: from `read_teacher`.
        student: the tokenizer that texts come from. Where its vocabulary is another one than the teacher's, pieces are
            joined to words and divided by the teacher's tokenizer.
        precision: "fp32", or "bf16" for matrix products of 16-bit numbers, summed in 32 bits.
    """

    def __init__(self, read: TeacherFolder, student: Tokenizer, precision: Precision = "fp32") -> None:
        check_readable(read, student)
        self.read, self.student, self.precision = read, student, precision
        self.same = read.model.tokenizer.vocabulary == student.vocabulary
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        model: Bert = build(read.model.config, read.model.weights)
        self.model = model.to(self.device).eval()

    @torch.inference_mode()
    def vectors(self, ids: npt.NDArray[np.integer], bounds: Ints) -> npt.NDArray[np.float16]:
        """Return the vectors [N, W] of texts in the student's pieces: text n is `ids[bounds[n]:bounds[n + 1]]`."""
        data = Dataset(self._encoded(ids, bounds), None, self.read.model.tokenizer.pad_id)
        out = np.empty((len(data), self.read.width), np.float16)
        for rows in by_length(data.lengths, _POSITIONS[self.device.type]):
            batch = data.batch(rows).to(self.device)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
                found = self._pooled(batch.ids, batch.mask)
            out[rows] = found.float().cpu().numpy().astype(np.float16)
        return out

    def _pooled(self, ids: Tensor, mask: Tensor | None) -> Tensor:
        """Return [B, W]."""
        if self.read.pooling == "cls":
            found = self.model(ids, None, mask, first_only=True)[:, 0]
        else:
            hidden = self.model(ids, None, mask)
            real = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask
            found = (hidden * real[:, :, None]).sum(1) / real.sum(1, keepdim=True)
        return torch.nn.functional.normalize(found, dim=1) if self.read.normalised else found

    def _encoded(self, ids: npt.NDArray[np.integer], bounds: Ints) -> Encoded:
        """Return rows as the teacher reads them, cut where they are longer than it reads."""
        own, room = self.read.model.tokenizer, self.read.max_length - 2
        if not self.same:
            return own.encode(_texts(ids, bounds, self.student), max_length=self.read.max_length)
        lengths = np.minimum(np.diff(bounds), room)
        offset = np.cumsum(lengths + 2) - (lengths + 2)
        owner = np.repeat(np.arange(len(lengths)), lengths)
        inner = np.arange(len(owner)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        rows = np.empty(int((lengths + 2).sum()), np.int32)
        rows[offset], rows[offset + lengths + 1] = own.cls_id, own.sep_id
        rows[offset[owner] + 1 + inner] = ids[bounds[:-1][owner] + inner]
        whole = (lengths + 2).astype(np.int32)
        return Encoded(rows, whole, whole, int(lengths.sum()), 0, int((lengths < np.diff(bounds)).sum()))


def _texts(ids: npt.NDArray[np.integer], bounds: Ints, tokenizer: Tokenizer) -> list[str]:
    """Join pieces to words, with spaces between; BERT's tokenizers divide at punctuation as they do at spaces."""
    pieces = tokenizer.vocabulary
    rows = (ids[start:end].tolist() for start, end in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True))
    return [" ".join(pieces[i] for i in row).replace(" ##", "") for row in rows]
