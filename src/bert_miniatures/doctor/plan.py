"""Checks of a planned run: its settings, the memory it needs, and a few updates of it."""

import math
from collections.abc import Iterator

from bert_miniatures.config import BATCH_SIZES, LEARNING_RATES, FinetuneConfig, ModelConfig
from bert_miniatures.doctor.subject import Finding, Found, Subject
from bert_miniatures.files import training_extra
from bert_miniatures.machine import instruction_sets
from bert_miniatures.memory import available, run_bytes
from bert_miniatures.watch import clock

__all__ = [
    "batch_size",
    "bf16",
    "epochs",
    "facts",
    "learning_rate",
    "memory",
    "positions",
    "probed",
    "updates",
]

FEW_UPDATES = 50
MOST_EPOCHS = 10
SHARE = 0.9  # of the free memory that a run may take
LONG = 12 * 3600  # seconds
PUBLISHED = "the published scores are the best of batch 8 16 32 64 128 and learning rate 3e-4 1e-4 5e-5 3e-5"


def _sizes(subject: Subject) -> ModelConfig | None:
    document = subject.document("config.json") or subject.document("bert_config.json")
    if document is not None:
        return ModelConfig.of(document, f"{subject.folder}/config.json")
    if subject.model is None or subject.published is None:
        return None
    from bert_miniatures.zoo import VOCABULARY

    d = subject.published.width
    return ModelConfig(vocab_size=VOCABULARY, hidden_size=d, num_hidden_layers=subject.published.layers,
                       num_attention_heads=subject.published.heads, intermediate_size=4 * d)  # fmt: skip


def _config(subject: Subject) -> FinetuneConfig:
    return FinetuneConfig(model=str(subject.folder or subject.model), data=subject.data, train=subject.train)


def _needed(subject: Subject) -> int | None:
    sizes = _sizes(subject)
    files = [path for path in (subject.data.train, subject.data.dev) if path is not None and path.is_file()]
    return None if sizes is None else run_bytes(_config(subject), sizes, sum(path.stat().st_size for path in files))


def facts(subject: Subject) -> Iterator[str]:
    """Say what the run will take."""
    needed = _needed(subject) if subject.planned and subject.model is not None else None
    if needed is not None:
        yield f"at most {needed / 2**30:.1f} GiB of memory, at the longest batch there can be"


def batch_size(subject: Subject) -> Found:
    """A batch size that nothing was published for."""
    if subject.planned and subject.train.batch_size not in BATCH_SIZES:
        near = min(BATCH_SIZES, key=lambda size: abs(math.log(size / subject.train.batch_size)))
        yield Finding(
            f"batch size {subject.train.batch_size} is not one of the published {', '.join(map(str, BATCH_SIZES))}",
            PUBLISHED,
            f"--batch-size {near}",
        )


def learning_rate(subject: Subject) -> Found:
    """A learning rate that nothing was published for."""
    if subject.planned and subject.train.learning_rate not in LEARNING_RATES:
        near = min(LEARNING_RATES, key=lambda rate: abs(math.log(rate / subject.train.learning_rate)))
        listed = ", ".join(f"{rate:g}" for rate in LEARNING_RATES)
        yield Finding(
            f"learning rate {subject.train.learning_rate:g} is not one of the published {listed}",
            PUBLISHED,
            f"--learning-rate {near:g}",
        )


def epochs(subject: Subject) -> Found:
    """One pass, or very many."""
    count = subject.train.epochs
    if subject.planned and not 2 <= count <= MOST_EPOCHS:
        yield Finding(
            f"{count} epoch{'' if count == 1 else 's'}",
            "the published models had 4; one pass is often too few, and many learn the training set by heart",
            "--epochs 4",
        )


def bf16(subject: Subject) -> Found:
    """Half precision on a processor that has no instructions for it."""
    gpu = (subject.root / "proc/driver/nvidia/gpus").is_dir()
    if subject.planned and subject.train.precision == "bf16" and not gpu:
        told = instruction_sets(subject.root)
        if told and not {"avx512_bf16", "amx_bf16", "bf16"} & set(told):
            yield Finding(
                "train.precision is bf16, and the processor has no instructions for it",
                "each number is converted there and back, which takes longer than fp32 does",
                "--set train.precision=fp32",
            )


def positions(subject: Subject) -> Found:
    """More word pieces than the model has positions."""
    most = subject.positions
    if most is not None and subject.data.max_length > most:
        yield Finding(
            f"max_length is {subject.data.max_length}, the model has {most} positions",
            "the run does not begin",
            f"--max-length {most}",
        )


def memory(subject: Subject) -> Found:
    """A run that does not fit into memory."""
    free, needed = available(subject.root), _needed(subject) if subject.planned else None
    if free is None or needed is None or needed <= SHARE * free:
        return
    size = subject.train.micro_batch_size or subject.train.batch_size
    sizes = _sizes(subject)
    assert sizes is not None
    smaller = size
    while smaller > 1:
        smaller //= 2
        train = subject.train.model_copy(update={"micro_batch_size": smaller})
        if run_bytes(_config(subject).model_copy(update={"train": train}), sizes, 0) <= SHARE * free:
            break
    yield Finding(
        f"the run needs up to {needed / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free",
        "it would be killed at its longest batch, perhaps after hours",
        f"--set train.micro_batch_size={smaller}, which gives the same updates",
    )


def updates(subject: Subject) -> Found:
    """A batch so large that there are hardly any updates."""
    if not subject.planned or not subject.has_data or not subject.is_here:
        return
    rows = len(subject.splits["train"])
    count = -(-rows // subject.train.batch_size) * subject.train.epochs
    if count < FEW_UPDATES:
        better = max([size for size in BATCH_SIZES if rows // size * subject.train.epochs >= FEW_UPDATES] or [8])
        enough = -(-rows // better) * subject.train.epochs >= FEW_UPDATES
        more = "" if enough else f" --epochs {-(-FEW_UPDATES // max(1, -(-rows // better)))}"
        yield Finding(
            f"{rows:,} rows in batches of {subject.train.batch_size} are {count} updates in all",
            "a new classifier needs some hundred updates to learn anything",
            f"--batch-size {better}{more}",
        )


def probed(subject: Subject, said: list[str]) -> Found:
    """Some updates of the run: does the loss explode, how long will it take?

    Args:
        said: takes what the updates showed, a sentence each.
    """
    ready = subject.planned and subject.folder is not None and subject.has_data and subject.is_here
    if not ready or subject.is_deployed or "torch" not in subject.installed:
        return
    if next(memory(subject), None) or next(positions(subject), None):
        return
    with training_extra("a planned run"):
        from bert_miniatures.doctor.probe import probe
    found = probe(_config(subject))
    first, last = found.losses[0], found.losses[-1]
    said.append(
        f"about {clock(found.seconds)} on this machine as it is now: {found.updates:,} updates of "
        f"{1000 * found.step:.1f} ms; loss {first:.3f} to {last:.3f} in {len(found.losses)} of them"
    )
    if found.diverged:
        yield Finding(
            f"at learning rate {subject.train.learning_rate:g} the loss goes from {first:.3g} to "
            f"{last:.3g} in {len(found.losses)} updates; guessing has {found.prior:.3g}",
            "the run diverges: its scores would be those of guessing, or none",
            "--learning-rate 1e-4",
        )
    if found.seconds > LONG:
        yield Finding(
            f"the run takes about {clock(found.seconds)}",
            "a smaller model or fewer rows show sooner whether the data are any good",
            "--set data.train_rows=10000 first, or a smaller --model",
        )
