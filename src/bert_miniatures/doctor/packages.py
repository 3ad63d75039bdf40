"""Checks of what is installed, from the packages' own metadata: nothing heavy is imported."""

from collections.abc import Iterator

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from bert_miniatures.doctor.subject import Finding, Found, Subject

__all__ = ["clashes", "extras", "facts", "requirements", "wanted"]

OWN = "bert-miniatures"
# extra -> the package that shows that somebody wants it, and what it is for
MAIN = {
    "train": ("torch", "training"),
    "deploy": ("onnxruntime", "exporting and serving"),
    "sweep": ("optuna", "--adaptive"),
    "scale": ("ray", "several machines"),
}
# two packages that do not go together, each with the versions that this is true of
_CLASHES = (
    ("onnxruntime", "", "onnxruntime-gpu", "", "both write the same folder, and the one installed last is half there"),
    ("optimum", "", "transformers", ">=5", "optimum needs transformers 4 and breaks at import"),
)
_SHOWN = ("numpy", "tokenizers", "torch", "transformers", "scikit-learn", "onnx", "onnxruntime", "ray")


def facts(subject: Subject) -> Iterator[str]:
    """Say which versions there are, and which extras are not installed."""
    found = subject.installed
    if OWN in found:
        yield f"{OWN} {found[OWN].version}"
    else:
        yield f"{OWN} runs from its source; what it needs is not recorded, and is not checked"
    yield ", ".join(f"{name} {found[name].version}" for name in _SHOWN if name in found)
    absent = [extra for extra, (main, _) in MAIN.items() if main not in found]
    if absent:
        yield "not installed: " + ", ".join(f"pip install '{OWN}[{extra}]' ({MAIN[extra][1]})" for extra in absent)


def _needs(subject: Subject, extra: str = "") -> list[Requirement]:
    """Return what this package needs: always, or for an extra beside that."""
    own = subject.installed.get(OWN)
    found = []
    for text in (own.requires if own else None) or []:
        one = Requirement(text)
        basic = one.marker is None or one.marker.evaluate({"extra": ""})
        wanted = basic if not extra else not basic and one.marker is not None and one.marker.evaluate({"extra": extra})
        if wanted and canonicalize_name(one.name) != OWN:
            found.append(one)
    return found


def _version_of(subject: Subject, one: Requirement) -> str | None:
    found = subject.installed.get(canonicalize_name(one.name))
    return None if found is None else found.version


def _range(one: Requirement) -> str:
    return f"{one.name}{one.specifier}"


def requirements(subject: Subject) -> Found:
    """A package that is missing or has a version that will not do: ours, and whatever those need in turn."""
    basis = _needs(subject)
    for extra in MAIN:
        if MAIN[extra][0] in subject.installed:
            basis += [one for one in _needs(subject, extra) if _version_of(subject, one) is not None]
    queue = [(OWN, one) for one in basis]
    seen = set()
    while queue:
        by, one = queue.pop(0)
        name, version = canonicalize_name(one.name), _version_of(subject, one)
        if version is None or not one.specifier.contains(version, prereleases=True):
            yield _unfit(by, one, version)
        if version is None or name in seen:
            continue
        seen.add(name)
        deeper = [Requirement(text) for text in subject.installed[name].requires or []]
        queue += [(name, more) for more in deeper if more.marker is None or more.marker.evaluate({"extra": ""})]


def _unfit(by: str, one: Requirement, version: str | None) -> Finding:
    there = "is not installed" if version is None else f"is {version}"
    return Finding(
        f"{one.name} {there}, {by} needs {_range(one)}",
        "it fails when it is first used, or in a way that shows only in the results",
        f"pip install '{_range(one)}'",
    )


def extras(subject: Subject) -> Found:
    """An extra that is wanted and not there, or there in part."""
    for extra, (main, what) in MAIN.items():
        lacks = [one.name for one in _needs(subject, extra) if _version_of(subject, one) is None]
        if not lacks or not (main in subject.installed or extra in wanted(subject)):
            continue
        whole = main not in subject.installed
        said = f"the extra '{extra}' is not installed" if whole else f"the extra '{extra}' lacks {', '.join(lacks)}"
        yield Finding(said, f"{what} needs it", f"pip install '{OWN}[{extra}]'")


def wanted(subject: Subject) -> set[str]:
    """Return the extras without which the user's plan cannot be carried out."""
    return {extra for extra, asked in (("train", subject.planned), ("deploy", subject.is_deployed)) if asked}


def clashes(subject: Subject) -> Found:
    """Two packages that do not go together."""
    for first, first_range, second, second_range, why in _CLASHES:
        both = [Requirement(first + first_range), Requirement(second + second_range)]
        versions = [_version_of(subject, one) for one in both]
        fits = [
            v is not None and one.specifier.contains(v, prereleases=True) for one, v in zip(both, versions, strict=True)
        ]
        if all(fits):
            yield Finding(
                f"{first} {versions[0]} and {second} {versions[1]} are both installed",
                why,
                f"pip uninstall {first} {second}, then install the one that is meant",
            )
