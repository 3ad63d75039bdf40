"""Checks of a model folder, and the repairs that cannot lose anything: config.json and tokenizer_config.json."""

import json
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from bert_miniatures.checkpoint import read_folder
from bert_miniatures.doctor.subject import Finding, Found, Subject
from bert_miniatures.errors import MiniaturesError
from bert_miniatures.files import write_json
from bert_miniatures.vocabulary import read_tokenizer_files
from bert_miniatures.zoo import POSITIONS

__all__ = [
    "case",
    "facts",
    "here",
    "label_names",
    "labels_agree",
    "longest_text",
    "model_type",
    "not_finite",
    "pickled",
    "pointer",
    "readable",
    "runs_here",
    "truncated",
    "vocabulary",
]

_GENERIC = re.compile(r"LABEL_\d+", re.IGNORECASE)
_PRETRAINED = "the published weights; 'miniatures fetch' gets them again"


def facts(subject: Subject) -> Iterator[str]:
    """Say which model it is."""
    if subject.model is None:
        return
    if subject.folder is None:
        assert subject.published is not None
        yield f"{subject.published.official}: not here yet, {subject.published.parameters * 4 / 1e6:.0f} MB to fetch"
        return
    sizes = subject.document("config.json") or subject.document("bert_config.json") or {}
    shape = f"{sizes.get('num_hidden_layers', '?')} layers, {sizes.get('hidden_size', '?')} wide"
    yield f"{subject.folder}: {'a deploy folder, ' if subject.is_deployed else ''}{shape}"


def here(subject: Subject) -> Found:
    """No folder, or one without a model."""
    folder = subject.folder
    if folder is None:
        return
    if not folder.is_dir() or not any((folder / name).is_file() for name in ("config.json", "bert_config.json")):
        what = "there is no config.json in it" if folder.is_dir() else "it is no folder"
        yield Finding(
            f"{folder} holds no model: {what}",
            "nothing can be read from it",
            "miniatures convert SRC DST makes a model folder from a checkpoint, miniatures fetch tiny gets one",
        )


def model_type(subject: Subject) -> Found:
    """An old config.json, which does not say that it is BERT's."""
    document = subject.document("config.json")
    if document is not None and "model_type" not in document:
        yield Finding(
            f"{subject.folder}/config.json has no model_type",
            "transformers' Auto classes and most servers refuse the folder",
            'add "model_type": "bert"',
            _changes(subject, "config.json", {"model_type": "bert"}),
        )


def label_names(subject: Subject) -> Found:
    """A classifier whose outputs have no names."""
    document, names = subject.document("config.json"), _own_names(subject)
    if document is None or subject.is_deployed or not _is_classifier(subject, document):
        return
    told = list((document.get("id2label") or {}).values())
    if document.get("problem_type") == "regression" or (told and not any(_GENERIC.fullmatch(str(n)) for n in told)):
        return
    new: dict[str, Any] = {"id2label": {str(i): name for i, name in enumerate(names)}}
    new |= {"label2id": {name: i for i, name in enumerate(names)}}
    yield Finding(
        f"{subject.folder}/config.json does not name the labels ({', '.join(map(str, told[:4])) or 'no id2label'})",
        "answers read LABEL_0, and labels in another order than the data's make wrong answers, in silence",
        '"id2label": {"0": "negative", "1": "positive"}, with the names in the order of the training data',
        _changes(subject, "config.json", new) if names else None,
    )


def _is_classifier(subject: Subject, document: dict[str, Any]) -> bool:
    kinds = document.get("architectures") or []
    return bool(_own_names(subject)) or any("Classification" in str(kind) for kind in kinds)


def _own_names(subject: Subject) -> list[str]:
    """Return the labels that miniature.json names."""
    found = (subject.document("miniature.json") or {}).get("labels")
    return [str(name) for name in found] if isinstance(found, list) else []


def labels_agree(subject: Subject) -> Found:
    """config.json and miniature.json name other labels, or in another order."""
    names, document = _own_names(subject), subject.document("config.json") or {}
    table = document.get("id2label") or {}
    told = [str(table.get(str(i))) for i in range(len(table))]
    if names and told and told != names and not any(_GENERIC.fullmatch(name) for name in told):
        yield Finding(
            f"{subject.folder}: config.json has the labels {', '.join(told)}, miniature.json {', '.join(names)}",
            "programs that read the one answer the opposite of those that read the other",
            "correct the one that is wrong; the order is that of the classifier's outputs",
        )


def longest_text(subject: Subject) -> Found:
    """Nothing says how long a text may be: transformers then cuts none, and the model fails on a long one."""
    if subject.is_deployed:
        return
    document = subject.document("tokenizer_config.json")
    limit, positions = (document or {}).get("model_max_length"), subject.positions or POSITIONS
    if isinstance(limit, int | float) and limit <= positions:
        return
    if document is None:
        what = "there is no tokenizer_config.json"
    else:
        what = f"model_max_length is {'missing' if limit is None else format(limit, 'g')} in tokenizer_config.json"
    yield Finding(
        f"{subject.folder}: {what}",
        f"transformers takes 1e30 for it, cuts nothing, and a text of over {positions} pieces is an index error",
        f'"model_max_length": {positions} in tokenizer_config.json',
        partial(_set_longest, subject.folder, document, positions) if subject.folder else None,
    )


def _set_longest(folder: Path, document: dict[str, Any] | None, positions: int) -> str:
    if document is None:
        lowercase = read_tokenizer_files(folder).lowercase
        document = {"tokenizer_class": "BertTokenizer", "do_lower_case": lowercase}
    return _write(folder / "tokenizer_config.json", document | {"model_max_length": positions}, "model_max_length")


def _changes(subject: Subject, name: str, new: dict[str, Any]) -> Callable[[], str]:
    assert subject.folder is not None
    return partial(_change, subject.folder / name, new)


def _change(path: Path, new: dict[str, Any]) -> str:
    """Read again: another repair may have changed the file."""
    return _write(path, json.loads(path.read_text(encoding="utf-8")) | new, ", ".join(new))


def _write(path: Path, document: dict[str, Any], what: str) -> str:
    write_json(path, document)
    return f"{path}: {what} set"


def case(subject: Subject) -> Found:
    """A tokenizer that keeps capital letters over a vocabulary that has none."""
    if subject.folder is None or (subject.document("tokenizer_config.json") or {}).get("do_lower_case") is not False:
        return
    pieces = read_tokenizer_files(subject.folder).vocabulary
    if not any(piece != piece.lower() for piece in pieces if not piece.startswith("[")):
        yield Finding(
            f"{subject.folder}: do_lower_case is false, and no piece of the vocabulary has a capital letter",
            "every word with a capital letter becomes [UNK]",
            '"do_lower_case": true in tokenizer_config.json, unless the model was trained so',
        )


def vocabulary(subject: Subject) -> Found:
    """A vocabulary of another size than the word table, or none that can be read."""
    if subject.folder is None or subject.is_deployed:
        return
    expected = (subject.document("config.json") or subject.document("bert_config.json") or {}).get("vocab_size")
    try:
        count = len(read_tokenizer_files(subject.folder).vocabulary)
    except MiniaturesError as error:
        why = "words would get the vectors of other words"
        yield Finding(str(error), why, "put the vocab.txt of the model there; the 24 all have the same one")
        return
    if count != expected:
        yield Finding(
            f"{subject.folder}: the vocabulary has {count} pieces, config.json says {expected}",
            "words get the vectors of other words; such a model trains without an error and learns little",
            "put the vocab.txt of the model there; the 24 all have the same one, of 30,522 pieces",
        )


def pointer(subject: Subject) -> Found:
    """Weights that are only the name of a file elsewhere."""
    for file in subject.weight_files[:1]:
        if _is_pointer(file):
            yield Finding(
                f"{file} is a pointer of Git LFS, not the weights",
                "the repository was cloned without its large files",
                f"git -C {file.parent} lfs pull",
            )


def _is_pointer(file: Path) -> bool:
    with file.open("rb") as opened:
        return opened.read(24).startswith(b"version https://git-lfs")


def truncated(subject: Subject) -> Found:
    """A safetensors file that is shorter or longer than its own table says."""
    for file in subject.weight_files[:1]:
        if file.suffix != ".safetensors" or _is_pointer(file):
            continue
        size, expected = file.stat().st_size, _promised(file)
        if expected is None or size != expected:
            told = "its table cannot be read" if expected is None else f"its table says {expected:,}"
            yield Finding(
                f"{file} has {size:,} bytes, {told}",
                "a download or a copy was cut short; the weights cannot be read",
                f"get it again: {_PRETRAINED}",
            )


def _promised(file: Path) -> int | None:
    """Return how many bytes a safetensors file should have, None where its head is damaged."""
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if length > file.stat().st_size:
            return None
        try:
            table = json.loads(opened.read(length))
            ends = [entry["data_offsets"][1] for name, entry in table.items() if name != "__metadata__"]
        except (ValueError, TypeError, KeyError, AttributeError):
            return None
    return 8 + length + max(ends, default=0)


def pickled(subject: Subject) -> Found:
    """Weights as a pickle alone."""
    for file in subject.weight_files[:1]:
        if file.suffix == ".bin":
            yield Finding(
                f"{file.parent} has {file.name} and no model.safetensors",
                "a pickle can run any code when a program opens it, and reading it needs torch",
                f"miniatures convert {file.parent} NEW-FOLDER, and use that",
            )


def readable(subject: Subject) -> Found:
    """Whatever else keeps the weights from being read: checksum, names, shapes, another architecture."""
    quiet = (here, truncated, pointer, vocabulary)  # these say it better
    if subject.folder is None or subject.is_deployed or any(next(check(subject), None) for check in quiet):
        return
    try:
        read_folder(subject.folder)
    except MiniaturesError as error:
        yield Finding(str(error), "no command can use this folder", f"get it again: {_PRETRAINED}")


def not_finite(subject: Subject) -> Found:
    """Weights that are not numbers."""
    import numpy as np

    if subject.folder is None or subject.is_deployed:
        return
    bad = [name for name, array in read_folder(subject.folder).weights.items() if not np.isfinite(array).all()]
    if bad:
        yield Finding(
            f"{subject.folder}: {len(bad)} weights hold NaN or infinity, {bad[0]} among them",
            "every answer is NaN; a run that diverged leaves such weights",
            "train again with a smaller --learning-rate",
        )


def runs_here(subject: Subject) -> Found:
    """A deploy folder that this machine cannot run: a file is missing or damaged, or int8 would overflow."""
    if not subject.is_deployed or subject.folder is None or "onnxruntime" not in subject.installed:
        return
    from bert_miniatures.predict_onnx import FILES, OnnxEngine

    listed = (subject.document("miniature.json") or {}).get("onnx") or {}
    for precision, file in FILES.items():
        if precision == "fp32" or file in listed:
            try:
                OnnxEngine(subject.folder, 1, precision)
            except MiniaturesError as error:
                what = "predict and serve cannot use this folder here"
                yield Finding(str(error), what, "miniatures export MODEL FOLDER --overwrite, on this machine")
                return
