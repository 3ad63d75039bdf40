"""The 24 BERT miniatures: sizes, parameter counts, where they are published, published GLUE scores.

Source: Turc, Chang, Lee, Toutanova 2019, "Well-Read Students Learn Better", arXiv 1908.08962; the model card of
google-research/bert for the 24 sizes and the four published rows.
"""

import re
from dataclasses import dataclass

from bert_miniatures.errors import UnknownName

__all__ = ["NICKNAMES", "PUBLISHED", "VOCABULARY", "ZOO", "Miniature", "lookup"]

VOCABULARY, POSITIONS, SEGMENTS = 30_522, 512, 2
ALL_MODELS_ZIP = "https://storage.googleapis.com/bert_models/2020_02_20/all_bert_models.zip"


@dataclass(frozen=True)
class Miniature:
    """One of the 24 models.

    Attributes:
        layers: number of transformer layers.
        width: hidden size; the feed-forward layer is four times as wide.
    """

    layers: int
    width: int

    @property
    def heads(self) -> int:
        """Number of attention heads, 64 wide each."""
        return self.width // 64

    @property
    def size(self) -> str:
        """The short name, as in `2/128`."""
        return f"{self.layers}/{self.width}"

    @property
    def official(self) -> str:
        """The name of Google's release, as in `uncased_L-2_H-128_A-2`."""
        return f"uncased_L-{self.layers}_H-{self.width}_A-{self.heads}"

    @property
    def hub(self) -> str:
        """The repository on the Hugging Face Hub."""
        return f"google/bert_{self.official}"

    @property
    def google_zip(self) -> str:
        """The address of Google's archive."""
        return f"https://storage.googleapis.com/bert_models/2020_02_20/{self.official}.zip"

    @property
    def nickname(self) -> str | None:
        """tiny, mini, small, medium or base, for the five that have one."""
        return next((name for name, size in NICKNAMES.items() if size == self.size), None)

    @property
    def parameters(self) -> int:
        """Number of encoder parameters, pooler included, by formula."""
        d = self.width
        embeddings = (VOCABULARY + POSITIONS + SEGMENTS) * d + 2 * d
        attention = 4 * (d * d + d) + 2 * d
        feed_forward = 4 * d * d + 4 * d + 4 * d * d + d + 2 * d
        return embeddings + self.layers * (attention + feed_forward) + d * d + d

    @property
    def published(self) -> dict[str, tuple[float, ...]] | None:
        """The published GLUE test scores, or None where none were published."""
        return PUBLISHED.get(self.nickname or "")


NICKNAMES = {"tiny": "2/128", "mini": "4/256", "small": "4/512", "medium": "8/512", "base": "12/768"}

ZOO: dict[str, Miniature] = {
    model.size: model
    for model in (Miniature(layers, width) for layers in (2, 4, 6, 8, 10, 12) for width in (128, 256, 512, 768))
}

# GLUE test scores in per cent; pairs are F1/accuracy (MRPC, QQP), Pearson/Spearman (STS-B), matched/mismatched (MNLI).
_COLUMNS = ("score", "cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli", "ax")
_ROWS: dict[str, tuple[tuple[float, ...], ...]] = {
    "tiny":   ((64.2,), (0.0,),  (83.2,), (81.1, 71.1), (74.3, 73.6), (62.2, 83.4), (70.2, 70.3), (81.5,), (57.2,), (62.3,), (21.0,)),
    "mini":   ((65.8,), (0.0,),  (85.9,), (81.1, 71.8), (75.4, 73.3), (66.4, 86.2), (74.8, 74.3), (84.1,), (57.9,), (62.3,), (26.1,)),
    "small":  ((71.2,), (27.8,), (89.7,), (83.4, 76.2), (78.8, 77.0), (68.1, 87.0), (77.6, 77.0), (86.4,), (61.8,), (62.3,), (28.6,)),
    "medium": ((73.5,), (38.0,), (89.6,), (86.6, 81.6), (80.4, 78.4), (69.6, 87.9), (80.0, 79.1), (87.7,), (62.2,), (62.3,), (30.5,)),
}  # fmt: skip
PUBLISHED: dict[str, dict[str, tuple[float, ...]]] = {
    name: dict(zip(_COLUMNS, row, strict=True)) for name, row in _ROWS.items()
}

_SIZE = re.compile(r"(?:google/)?(?:bert[_-])?(?:uncased[_-])?L-?(\d+)[_-]H-?(\d+)(?:[_-]A-?\d+)?|(\d+)/(\d+)", re.I)


def lookup(name: str) -> Miniature:
    """Return the model with this nickname, size or official name.

    Args:
        name: `tiny`, `2/128`, `uncased_L-2_H-128_A-2` or `google/bert_uncased_L-2_H-128_A-2`, in any case.

    Raises:
        UnknownName: no such model.

    Example:
        >>> lookup("tiny").parameters
        4385920
    """
    folded = name.strip().casefold()
    found = _SIZE.fullmatch(folded)
    size = NICKNAMES.get(folded) or ("/".join(part for part in found.groups() if part) if found else folded)
    if size not in ZOO:
        choices = [*NICKNAMES, *ZOO, *(model.official for model in ZOO.values())]
        raise UnknownName("model", name, choices, "'miniatures models' lists them; a folder must exist")
    return ZOO[size]
