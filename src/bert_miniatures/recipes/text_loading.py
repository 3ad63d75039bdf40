"""What a pre-training run needs before its first update: the model to start from, and the text as word pieces."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bert_miniatures.checkpoint import ModelFolder, read_folder
from bert_miniatures.config import ModelConfig, PretrainConfig
from bert_miniatures.data.corpus import open_corpus
from bert_miniatures.data.encoding import EncodedCorpus, corpus_checksum, encode_corpus
from bert_miniatures.data.instances import split_documents
from bert_miniatures.errors import ConfigError, DataError, DownloadFailed, Offline, UnknownName
from bert_miniatures.models import resolve
from bert_miniatures.names import Weights
from bert_miniatures.teacher import TeacherFolder, read_teacher
from bert_miniatures.tokenizer import Tokenizer
from bert_miniatures.watch import Watch
from bert_miniatures.zoo import POSITIONS, SEGMENTS, lookup

__all__ = ["TextInputs", "groups_of_run", "load_text_inputs", "untrained"]

_HEADS = {"mlm": "masked-LM head", "nsp": "next-sentence head", "pooler": "pooler"}
_UNKNOWN = 0.05  # share of unknown pieces that is said loudly


@dataclass(frozen=True)
class TextInputs:
    """A run's inputs.

    Attributes:
        parent: the model to start from; without weights where all are drawn.
        training, held_out: the numbers of the documents.
        teacher: what its folder says; None where there is none, or nothing more to ask it.
        checksums: what must be the same when the run is resumed.
    """

    parent: ModelFolder
    corpus: EncodedCorpus
    training: npt.NDArray[np.int64]
    held_out: npt.NDArray[np.int64]
    checksums: Mapping[str, str]
    teacher: TeacherFolder | None = None

    def facts(self, config: PretrainConfig) -> dict[str, Any]:
        """Return what result.json says of them."""
        parent, corpus = self.parent, self.corpus
        return {
            "model": config.model,
            "layers": parent.config.num_hidden_layers,
            "width": parent.config.hidden_size,
            "pieces": parent.config.vocab_size,
            "parent_sha256": parent.fingerprint,
            "corpus": {
                "pieces": len(corpus.ids),
                "documents": len(corpus.hashes),
                "held_out": len(self.held_out),
                "unknown": corpus.unknown,
                "bad_lines": corpus.bad_lines,
            },
            "data_sha256": dict(self.checksums),
            "settings": config.data.model_dump(mode="json", exclude={"corpus", "text", "encoding_errors"}),
            **({"teacher": config.teacher.model_dump(mode="json")} if config.teacher.model else {}),
        }


def load_text_inputs(
    config: PretrainConfig, watch: Watch, run: Path, known: Mapping[str, str] | None = None
) -> TextInputs:
    """Read and check everything, so that what is wrong is said before the work begins.

    Args:
        run: the run folder, for messages.
        known: the checksums of the run that is resumed.

    Raises:
        DataError: the corpus cannot be used, or it or the vocabulary is not that of the run that is resumed.
    """
    data = config.data
    sources = open_corpus(data.corpus, column=data.text)
    parent = _parent(config)
    checksums = {
        "corpus": corpus_checksum(sources, data.encoding_errors),
        "vocabulary": parent.tokenizer.fingerprint,
        "model": parent.fingerprint,
    }
    teacher = read_teacher(resolve(config.teacher.model), config.teacher.pooling) if config.teacher.model else None
    if teacher:
        checksums["teacher"] = teacher.fingerprint
    for name, checksum in (known or {}).items():
        if checksums.get(name) != checksum:
            raise DataError(f"the {name} changed since {run} was begun; --overwrite starts it anew")
    _check_lengths(config, parent)
    _say_heads(config, parent, watch)
    corpus = encode_corpus(sources, parent.tokenizer, on_errors=data.encoding_errors, watch=watch)
    training, held_out = split_documents(corpus.hashes, data.hold_out)
    _say_corpus(corpus, len(held_out), watch)
    if data.hold_out and not len(held_out):
        watch.warn("fewer than four documents: none is held out, and there is no validation")
    return TextInputs(parent, corpus, training, held_out, checksums, teacher)


def _parent(config: PretrainConfig) -> ModelFolder:
    """Return the model that is trained further or, with a vocabulary, the sizes of a new one."""
    if config.vocab is None:
        try:
            return read_folder(resolve(config.model))
        except (Offline, DownloadFailed) as error:
            raise type(error)(f"{error}\nor give --vocab DIR: the weights are then drawn, not fetched") from error
    try:
        size = lookup(config.model)
    except UnknownName:
        if config.model != "starter" and not Path(config.model).exists():
            raise
        raise ConfigError(
            f"--vocab is for new weights, and '{config.model}' has weights and a vocabulary of its own; leave out "
            "--vocab to train it further, or give a size as 2/128"
        ) from None
    tokenizer = Tokenizer.from_folder(config.vocab)
    sizes = ModelConfig(
        vocab_size=len(tokenizer.vocabulary),
        hidden_size=size.width,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        intermediate_size=4 * size.width,
        max_position_embeddings=POSITIONS,
        type_vocab_size=SEGMENTS,
        pad_token_id=tokenizer.pad_id,
    )
    return ModelFolder(sizes, {}, tokenizer)


def groups_of_run(config: PretrainConfig) -> set[str]:
    """Return the heads that are trained."""
    groups = {"mlm", "nsp", "pooler"} if config.data.next_sentence else {"mlm"}
    teacher = config.teacher
    return groups | {"pooler"} if teacher.model and (teacher.vector_share or teacher.pair_share) else groups


def untrained(config: PretrainConfig, parent: ModelFolder) -> Weights:
    """Return the weights that stay as they are: without pairs, the parent's pooler and next-sentence head."""
    kept = {"nsp", "pooler"} - groups_of_run(config)
    return {name: array for name, array in parent.weights.items() if name.split(".")[0] in kept}


def _check_lengths(config: PretrainConfig, parent: ModelFolder) -> None:
    positions = parent.config.max_position_embeddings
    lengths = {"max_length": config.data.max_length}
    if config.data.long_share:
        lengths["long_length"] = config.data.long_length
    for name, length in lengths.items():
        if length > positions:
            raise ConfigError(f"{name} {length} is more than the model's {positions} positions")
    if lengths.get("long_length", 2**30) <= config.data.max_length:
        raise ConfigError(
            f"data.long_length {config.data.long_length} is not more than max_length {config.data.max_length}; with "
            "data.long_share = 0 there is one length"
        )
    if config.data.next_sentence and parent.config.type_vocab_size < 2:
        raise ConfigError("the model has one segment, and pairs need two; --set data.next_sentence=false goes without")


def _say_heads(config: PretrainConfig, parent: ModelFolder, watch: Watch) -> None:
    for text in parent.notes:
        watch.note(text)
    if not parent.weights:
        count = len(parent.tokenizer.vocabulary)
        watch.note(f"new weights for {config.model} (seed {config.train.seed}), vocabulary of {count:,} pieces")
        return
    for group in sorted(groups_of_run(config) - parent.groups):
        watch.note(f"the model has no {_HEADS[group]}; a new one is drawn")
    if "head" in parent.groups:
        watch.note("the model's classifier is left out: it would not fit the encoder that it will become")


def _say_corpus(corpus: EncodedCorpus, held_out: int, watch: Watch) -> None:
    pieces, documents = len(corpus.ids), len(corpus.hashes)
    share = corpus.unknown / pieces
    watch.note(
        f"corpus: {pieces:,} pieces in {documents:,} documents, {share:.2%} unknown; "
        f"{held_out:,} documents held out to validate on"
    )
    if share > _UNKNOWN:
        watch.warn(
            f"{share:.0%} of the pieces are unknown to this vocabulary; most likely it was made for another language "
            "or is not whole, and the model will learn little"
        )
