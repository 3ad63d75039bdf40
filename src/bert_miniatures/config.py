"""Every recipe's settings: frozen pydantic models, a TOML file, `--set key=value`.

The names are the same in TOML, on the command line and in Python. A key that does not exist is an error that names
the nearest one. `ModelConfig` uses Hugging Face's keys, because it is what config.json holds.
"""

import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Self, get_args

import pydantic
import tomli_w
from pydantic import Field

from bert_miniatures.errors import CheckpointError, ConfigError, UnknownName
from bert_miniatures.files import atomic_write

__all__ = [
    "BATCH_SIZES",
    "LEARNING_RATES",
    "CorpusConfig",
    "DataConfig",
    "FinetuneConfig",
    "ModelConfig",
    "PretrainConfig",
    "PretrainTrainConfig",
    "Settings",
    "TeacherConfig",
    "TrainConfig",
    "overridden",
    "read_toml",
    "write_toml",
]

# The published grid: for each task the best of 5 x 4, 4 epochs (model card of google-research/bert).
BATCH_SIZES = (8, 16, 32, 64, 128)
LEARNING_RATES = (3e-4, 1e-4, 5e-5, 3e-5)


class Settings(pydantic.BaseModel):
    """Base of all settings: frozen, unknown keys refused."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    @classmethod
    def of(cls, document: Mapping[str, Any], overrides: Iterable[str] = (), where: str = "") -> Self:
        """Build the settings from nested mappings and `--set` strings, which win.

        Raises:
            UnknownName: a key that does not exist; names the nearest.
            ConfigError: a value that cannot work; `where` begins the sentence.
        """
        tree = overridden(document, overrides)
        _check_keys(cls, tree, ())
        try:
            return cls(**tree)
        except pydantic.ValidationError as error:
            raise ConfigError(f"{where}{': ' if where else ''}{_sentence(error)}") from None


def overridden(document: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """Return nested mappings with `--set` strings on top.

    Raises:
        ConfigError: a string is not key=value.
    """
    tree = _merged({}, document)
    for override in overrides:
        key, sign, value = override.partition("=")
        if not sign:
            raise ConfigError(f"--set {override}: expected key=value, as in train.warmup=0.2")
        _merge_into(tree, key.strip().split("."), _parse_value(value.strip()))
    return tree


class ModelConfig(pydantic.BaseModel):
    """Sizes and constants of an encoder, with Hugging Face's names; keys that are not listed here are ignored.

    Attributes:
        hidden_act: `gelu` is the erf form, `gelu_new` and `gelu_pytorch_tanh` the tanh form.
        classifier_dropout: dropout before the classifier; None means `hidden_dropout_prob`.
    """

    model_config = pydantic.ConfigDict(frozen=True, extra="ignore", protected_namespaces=())

    vocab_size: int = Field(gt=0)
    hidden_size: int = Field(gt=0)
    num_hidden_layers: int = Field(gt=0)
    num_attention_heads: int = Field(gt=0)
    intermediate_size: int = Field(gt=0)
    max_position_embeddings: int = Field(default=512, gt=0)
    type_vocab_size: int = Field(default=2, gt=0)
    layer_norm_eps: float = Field(default=1e-12, gt=0)
    hidden_act: Literal["gelu", "gelu_new", "gelu_pytorch_tanh"] = "gelu"
    hidden_dropout_prob: float = Field(default=0.1, ge=0, lt=1)
    attention_probs_dropout_prob: float = Field(default=0.1, ge=0, lt=1)
    classifier_dropout: float | None = Field(default=None, ge=0, lt=1)
    initializer_range: float = Field(default=0.02, gt=0)
    pad_token_id: int = Field(default=0, ge=0)

    @pydantic.model_validator(mode="after")
    def _heads_divide_width(self) -> Self:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {self.num_attention_heads}"
            )
        return self

    @classmethod
    def of(cls, document: Mapping[str, Any], where: str) -> Self:
        """Read the keys of a config.json or bert_config.json.

        Raises:
            CheckpointError: another architecture, a missing key or an impossible value; `where` begins the sentence.
        """
        kind = document.get("model_type", "bert")
        if kind != "bert":
            raise CheckpointError(f"{where}: model_type is '{kind}', expected 'bert'")
        positions = document.get("position_embedding_type", "absolute")
        if positions != "absolute":
            raise CheckpointError(f"{where}: position_embedding_type '{positions}' is not supported, only 'absolute'")
        try:
            return cls(**document)
        except pydantic.ValidationError as error:
            raise CheckpointError(f"{where}: {_sentence(error)}") from None


class DataConfig(Settings):
    """Which data: a GLUE task in its official layout, or files of one's own.

    Attributes:
        task: a GLUE task's name, or None for own files.
        glue: the folder with GLUE in the official layout.
        train, dev: own files (.csv .tsv .jsonl .parquet).
        text, pair, label: column names; guessed from the header where None.
        kind: what the labels are; inferred where None.
        max_length: in word pieces, special tokens included.
        hold_out: share of the training rows that become the dev set where own data has no dev file.
        train_rows, dev_rows: use only the first so many rows.
    """

    task: str | None = None
    glue: Path | None = None
    train: Path | None = None
    dev: Path | None = None
    text: str | None = None
    pair: str | None = None
    label: str | None = None
    kind: Literal["classification", "regression", "multilabel"] | None = None
    max_length: int = Field(default=128, ge=5)
    hold_out: float = Field(default=0.1, ge=0, lt=1)
    train_rows: int | None = Field(default=None, gt=0)
    dev_rows: int | None = Field(default=None, gt=0)


class TrainConfig(Settings):
    """The optimisation.

    Attributes:
        batch_size: examples per optimizer step; the published values are 8, 16, 32, 64, 128.
        micro_batch_size: examples per backward pass, where a whole batch does not fit into memory; the gradients of a
            batch are accumulated, and the update is the same.
        learning_rate: at its highest; the published values are 3e-4, 1e-4, 5e-5, 3e-5.
        epochs: passes over the training set; published: 4.
        optimizer: `adamw` (with bias correction) or `bertadam` (Google's: without, epsilon 1e-6).
        epsilon: None means the optimizer's own, 1e-8 for adamw and 1e-6 for bertadam.
        warmup: share of all steps in which the learning rate rises linearly; then it falls linearly to 0.
        clip: global norm that gradients are cut to; 0 switches clipping off.
        dropout: of every kind, in this run alone; None means those of the model.
        class_weights: `balanced` weighs each class by rows / (classes x rows of the class); or label name -> weight.
        standardise: regression targets are trained at mean 0, deviation 1, and folded back into the saved head.
        exact_speedups: the identities that leave the mathematics alone (docs/finetuning.md).
        precision: `auto` is bf16 on a GPU and fp32 on a CPU.
        threads: of torch; None means all cores that this process may use.
        log_every: steps between two records in metrics.jsonl.
        save_every: seconds between two saved states.
    """

    batch_size: int = Field(default=32, gt=0)
    micro_batch_size: int | None = Field(default=None, gt=0)
    learning_rate: float = Field(default=1e-4, gt=0)
    epochs: int = Field(default=4, gt=0)
    optimizer: Literal["adamw", "bertadam"] = "adamw"
    weight_decay: float = Field(default=0.01, ge=0)
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.999, ge=0, lt=1)
    epsilon: float | None = Field(default=None, gt=0)
    warmup: float = Field(default=0.1, ge=0, le=1)
    clip: float = Field(default=1.0, ge=0)
    dropout: float | None = Field(default=None, ge=0, lt=1)
    class_weights: Literal["none", "balanced"] | dict[str, float] = "none"
    standardise: bool = True
    exact_speedups: bool = True
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    threads: int | None = Field(default=None, gt=0)
    seed: int = Field(default=1, ge=0)
    log_every: int = Field(default=10, gt=0)
    save_every: float = Field(default=30.0, ge=0)


class FinetuneConfig(Settings):
    """A fine-tuning run: `miniatures finetune`.

    Attributes:
        model: any MODEL of the command line.
        keep: the weights of the last epoch, or of the epoch with the best dev score on the task's first metric.
    """

    model: str
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    keep: Literal["last", "best"] = "last"


class CorpusConfig(Settings):
    """Which text, and what becomes of it: docs/pretraining.md.

    Attributes:
        corpus: .txt, .jsonl (each also as .gz .xz .zst) or .parquet files.
        text: the key or column with the text, in .jsonl and .parquet.
        encoding_errors: what to do with a line that is not UTF-8.
        max_length: of an instance in word pieces, special tokens included.
        long_length, long_share: the last updates, this share of them, read instances of `long_length` pieces.
        next_sentence: instances are pairs, and the model learns to tell which are two texts that follow each other.
        short_share: share of instances that are made for a random smaller length.
        masking: "token" hides word pieces, "word" whole words.
        mask_share: share of the pieces that are to be guessed.
        packed: rows hold as many instances as fit.
        hold_out: share of the documents to validate on.
    """

    corpus: tuple[Path, ...] = ()
    text: str | None = None
    encoding_errors: Literal["error", "replace", "skip"] = "error"
    max_length: int = Field(default=128, ge=5)
    long_length: int = Field(default=512, ge=5)
    long_share: float = Field(default=0.0, ge=0, lt=1)
    next_sentence: bool = True
    short_share: float = Field(default=0.1, ge=0, le=1)
    masking: Literal["token", "word"] = "token"
    mask_share: float = Field(default=0.15, gt=0, lt=1)
    packed: bool = False
    hold_out: float = Field(default=0.01, ge=0, lt=1)


class PretrainTrainConfig(TrainConfig):
    """The optimisation of pre-training. At most one of epochs, steps, budget and schedule says how long.

    Attributes:
        batch_size: rows per update at `max_length`; at `long_length` as many fewer as they are longer.
        learning_rate: at its highest.
        epochs: passes over the corpus; 0: another setting says how long, or it is one pass.
        steps: updates.
        budget: time on the clock, as "2h"; decides the number of updates.
        schedule: what a run with a budget left in result.json, to repeat it: (update, updates of the whole run known
            from there on), ascending from update 0.
        eval_every: updates between two validations; None means a tenth of the run.
    """

    learning_rate: float = Field(default=5e-4, gt=0)
    epochs: int = Field(default=0, ge=0)
    steps: int | None = Field(default=None, gt=0)
    budget: str | None = None
    schedule: tuple[tuple[int, int], ...] | None = None
    eval_every: int | None = Field(default=None, gt=0)
    log_every: int = Field(default=20, gt=0)
    save_every: float = Field(default=60.0, ge=0)

    @pydantic.model_validator(mode="after")
    def _fit_each_other(self) -> Self:
        ways = {"epochs": self.epochs, "steps": self.steps, "budget": self.budget, "schedule": self.schedule}
        given = [name for name, value in ways.items() if value]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} both say how long the run is; give one of them")
        if self.class_weights != "none" or not self.standardise:
            raise ValueError("class_weights and standardise are of fine-tuning; pre-training has no labels")
        if self.schedule is not None:
            _check_schedule(self.schedule)
        return self


def _check_schedule(schedule: tuple[tuple[int, int], ...]) -> None:
    steps = [step for step, _ in schedule]
    if steps[:1] != [0] or steps != sorted(set(steps)) or any(end < max(1, step) for step, end in schedule):
        given = [list(pair) for pair in schedule]
        raise ValueError(f"schedule {given} does not ascend from update 0, as [[0, 900], [300, 800]] does")


class TeacherConfig(Settings):
    """A sentence encoder to learn from beside masked words: docs/pretraining.md.

    Attributes:
        model: any MODEL of the command line, or a BERT folder of sentence-transformers; None: there is no teacher.
        pooling: how its vectors are made, where its folder does not say.
        masked_share, vector_share, pair_share: of the updates, in any unit: masked words, sentence vectors, pairs.
        batch_size: sentences or pairs per update; None means that of masked words.
        sentences: that the teacher reads.
        shortest, longest: their word pieces; None means what fits into `max_length`.
        phrases: of 1 to 8 words, cut from the sentences, that it reads too.
        precision: of the teacher; bf16 is quicker where the processor multiplies it, and its vectors differ a little.
        pairs: how many; near_share and thinned_share of them are near neighbours and thinned copies, the rest random.
        among: neighbours are looked for among so many sentences.
        start_words: the word vectors of new weights start from the teacher's.
        seed: decides which sentences and pairs; not that of the run, so that several runs share them.
    """

    model: str | None = None
    pooling: Literal["mean", "cls"] | None = None
    masked_share: float = Field(default=0.5, gt=0)
    vector_share: float = Field(default=0.25, ge=0)
    pair_share: float = Field(default=0.25, ge=0)
    batch_size: int | None = Field(default=None, gt=0)
    sentences: int = Field(default=500_000, gt=0)
    shortest: int = Field(default=6, gt=0)
    longest: int | None = Field(default=None, gt=0)
    phrases: int = Field(default=0, ge=0)
    precision: Literal["fp32", "bf16"] = "fp32"
    pairs: int = Field(default=500_000, gt=0)
    near_share: float = Field(default=0.60, ge=0, le=1)
    thinned_share: float = Field(default=0.15, ge=0, le=1)
    among: int = Field(default=100_000, gt=0)
    start_words: bool = False
    seed: int = Field(default=1, ge=0)

    @pydantic.model_validator(mode="after")
    def _fit_each_other(self) -> Self:
        if self.near_share + self.thinned_share > 1:
            raise ValueError(f"near_share {self.near_share:g} and thinned_share {self.thinned_share:g} are more than 1")
        if self.model is None and self.start_words:
            raise ValueError("start_words needs a teacher: give its model too")
        return self


class PretrainConfig(Settings):
    """A pre-training run: `miniatures pretrain`.

    Attributes:
        model: a size of the 24 with `vocab`, whose weights are drawn; or any MODEL, which is trained further.
        vocab: the folder with the tokenizer of a new model.
    """

    model: str
    vocab: Path | None = None
    data: CorpusConfig = CorpusConfig()
    teacher: TeacherConfig = TeacherConfig()
    train: PretrainTrainConfig = PretrainTrainConfig()


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        ConfigError: missing, not UTF-8 or not TOML; the sentence has the file and the line.
    """
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from None


def write_toml(path: Path, settings: pydantic.BaseModel) -> None:
    """Write settings as TOML, atomically; what is None is left out."""
    document = settings.model_dump(mode="json", exclude_none=True)
    with atomic_write(path) as temporary:
        temporary.write_text(tomli_w.dumps(document), encoding="utf-8")


def _merged(base: Mapping[str, Any], extra: Mapping[str, Any]) -> dict[str, Any]:
    out: dict[str, Any] = dict(base)
    for key, value in extra.items():
        if isinstance(value, Mapping):
            inner = out.get(key)
            out[key] = _merged(inner if isinstance(inner, Mapping) else {}, value)
        elif value is not None:
            out[key] = value
    return out


def _merge_into(tree: dict[str, Any], path: list[str], value: Any) -> None:
    for part in path[:-1]:
        tree = tree.setdefault(part, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"--set {'.'.join(path)}: '{part}' is a value, not a section")
    tree[path[-1]] = value


def _parse_value(text: str) -> Any:
    """Read a TOML value; what is not one is a plain string, so that paths and names need no quotes."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _check_keys(model: type[pydantic.BaseModel], tree: Mapping[str, Any], path: tuple[str, ...]) -> None:
    for key, value in tree.items():
        field = model.model_fields.get(key)
        if field is None:
            dotted = [".".join((*path, name)) for name in model.model_fields]
            raise UnknownName("setting", ".".join((*path, key)), dotted)
        kinds = (field.annotation, *get_args(field.annotation))  # a section may be left out: X | None
        inner = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, pydantic.BaseModel)), None)
        if inner is not None:
            if not isinstance(value, Mapping):
                raise ConfigError(f"{'.'.join((*path, key))} is a section, not a value")
            _check_keys(inner, value, (*path, key))


def _sentence(error: pydantic.ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "missing":
        return f"'{where}' is missing"
    message = first["msg"].removeprefix("Value error, ")
    if where and isinstance(first["input"], Mapping):  # of a section as a whole
        return f"{where}: {message}"
    return f"{where} = {first['input']!r}: {message[0].lower()}{message[1:]}" if where else message
