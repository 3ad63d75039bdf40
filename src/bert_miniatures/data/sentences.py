"""Paragraphs to sentences, by a rule of our own (docs/pretraining.md has it in words).

Pre-training needs sentences only as places where a text may be divided. A missed end costs nothing; an end inside a
sentence gives a worse pair. Where the rule is in doubt it does not divide.
"""

import re
from collections.abc import Iterator

__all__ = ["split_sentences"]

# Marks, closing quotes and brackets, space; then what opens a sentence: quotes and brackets, a capital or a digit.
# Chinese and Japanese marks need no space.
_ENDS = re.compile(
    r"(?<![.!?\u2026])(?P<marks>[.!?\u2026]+)(?P<closers>[\"'\u201d\u2019\u00bb)\]]*)(?P<space>\s+)"
    r"(?=(?P<openers>[\"'\u201c\u2018\u00ab(\[]*)(?P<next>[^\W_]+))"
    r"|[\u3002\uff01\uff1f]+[\u300d\u300f\u201d\u2019\uff09]*\s*(?=\S)"
)
_OPENERS = "\"'\u201c\u2018\u00ab([-\u2014\u2013"
_ACRONYM = re.compile(r"(?:[^\W\d_]\.)+[^\W\d_]")


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Abbreviations that a name, a number or a lower-case word follows; a sentence hardly ever ends with them.
_ABBREVIATIONS = _words(
    """adj adm al approx apr assn aug ave bldg blvd bros capt cf chap cmdr col comdr cpl dec dept dr ed eds eg esp est
    feb figs gen gov hon ie insp introd jan jr lieut lt maj messrs mlle mlles mm mme mmes mr mrs ms msgr mss mt mts nov
    nr op pp prof pseud pt pvt rep repr resp rev sen sept sergt sgt sr st ste supt univ var viz vol vols vs"""
)
_BEFORE_DIGITS = _words("art bk cap ch chap fig figs no nos nr op p para pp pt sec sect ser vol vols")

# Words that begin sentences and not names: after "U.S." or "J." they say that a sentence ended there.
_STARTERS = _words(
    """After All Also Although And Another As At Because Before Both But By Despite Due During Each Following For From
    He Her His How However If In It Its Later Many Most No Now On One Other Our Several She Since So Some Such That The
    Their Then There These They This Those Though Three Through Thus To Two Under Until We What When Where Which While
    Who Why With You Your"""
)


def split_sentences(paragraph: str) -> list[str]:
    """Return the sentences of a paragraph, without the space between them.

    Example:
        >>> split_sentences('Mr. J. Doe paid 3.50 to the U.S. Navy. "Why?" he asked. Nobody knew.')
        ['Mr. J. Doe paid 3.50 to the U.S. Navy.', '"Why?" he asked.', 'Nobody knew.']
    """
    sentences, start = [], 0
    for end in _ends(paragraph):
        sentence = paragraph[start:end].strip()
        start = end
        if sentence:
            sentences.append(sentence)
    return sentences


def _ends(text: str) -> Iterator[int]:
    start = 0
    for found in _ENDS.finditer(text):
        if found["marks"] is None or _is_end(text, start, found):
            start = found.end()
            yield start
    yield len(text)


def _is_end(text: str, start: int, found: re.Match[str]) -> bool:
    """Decide about marks that a word follows; `start` is where the sentence began."""
    following = found["next"]
    if not (following[0].isupper() or following[0].isdigit() or following[0].lower() == following[0].upper()):
        return False
    if found["marks"] != "." or found["closers"]:
        return True
    at = found.start()
    word = text[max(start, text.rfind(" ", start, at) + 1) : at].lstrip(_OPENERS)
    if word.isdigit():  # "1. Introduction": a number that numbers
        return bool(text[start : at - len(word)].strip())
    if following[0].isdigit() and word.lower() in _BEFORE_DIGITS:
        return False
    if (len(word) == 1 and word.isalpha() and word != "I") or _ACRONYM.fullmatch(word):
        return following in _STARTERS
    return word.lower() not in _ABBREVIATIONS
