"""Captions as T5 of MAGI-1 and its relatives was fed in training: the cleaner of DeepFloyd IF (Stability AI, 2023).

It was made for scraped English captions: lower case, without links, markup, file names, article numbers and Chinese
characters. `tidy` is for prompts of any other kind: it mends and collapses, and leaves every word. Knows only text.

Source: the published `clean_caption`, of which each rule below has the pattern and the place in the order.
"""

from __future__ import annotations

import html
import re
from html.parser import HTMLParser
from urllib.parse import unquote_plus

from engine.conditioners.tensors import require

Rules = tuple[tuple[re.Pattern[str], str], ...]

DOMAINS = r"[a-zA-Z0-9.\-]+[.](?:com|co|ru|net|org|edu|gov|it)[\w/-]*\b\/?(?!@)"
FILES = "png|jpg|jpeg|bmp|webp|eps|pdf|apk|mp4"
DASHES = (
    "\u002d\u058a\u05be\u1400\u1806\u2010-\u2015\u2e17\u2e1a\u2e3a\u2e3b\u2e40\u301c\u3030\u30a0\ufe31\ufe32\ufe58\ufe63"
    "\uff0d"
)


def rules(*pairs: tuple[str, str]) -> Rules:
    return tuple((re.compile(pattern), new) for pattern, new in pairs)


LINKS = rules(
    ("<person>", "person"),
    (rf"\b((?:https?:(?:\/{{1,3}}|[a-zA-Z0-9%])|{DOMAINS}))", ""),
    (rf"\b((?:www:(?:\/{{1,3}}|[a-zA-Z0-9%])|{DOMAINS}))", ""),
)
SIGNS = rules(
    (r"@[\w\d]+\b", ""),  # nicknames
    ("[\u31c0-\u9fff]+", ""),  # strokes, enclosed and compatible forms, ideographs, hexagrams
    (f"[{DASHES}]+", "-"),
    ("[`´«»“”¨]", '"'),
    ("[‘’]", "'"),
    (r"&quot;?", ""),
    (r"&amp", ""),
    (r"\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}", " "),  # network addresses
    (r"\d:\d\d\s+$", ""),  # article ids
    (r"\\n", " "),
    (r"#\d{1,3}\b", ""),
    (r"#\d{5,}\b", ""),
    (r"\b\d{6,}\b", ""),
    (rf"[\S]+\.(?:{FILES})", ""),
    (r"[\"\']{2,}", '"'),
    (r"[\.]{2,}", " "),
    (r"[#®•©™&@·º½¾¿¡§~\)\(\]\[\}\{\|\\/\*]{1,}", " "),
    (r"\s+\.\s+", " "),
)
JOINTS = re.compile(r"[-_]")
MOST_JOINTS = 3  # this-is-my-cute-cat is words, well-lit is one
NOISE = rules(
    (r"\b[a-zA-Z]{1,3}\d{3,15}\b", ""),  # jc6640
    (r"\b[a-zA-Z]+\d+[a-zA-Z]+\b", ""),  # jc6640vc
    (r"\b\d+[a-zA-Z]+\d+\b", ""),  # 6640vc231
    (r"(worldwide\s+)?(free\s+)?shipping", ""),
    (r"(free\s)?download(\sfree)?", ""),
    (r"\bclick\b\s(?:for|on)\s\w+", ""),
    (rf"\b(?:{FILES})(\simage[s]?)?", ""),
    (r"\bpage\s+\d+\b", ""),
    (r"\b\d*[a-zA-Z]+\d+[a-zA-Z]+\d+[a-zA-Z\d]*\b", " "),  # j2d1a2a
    (r"\b\d+\.?\d*[x\u0445×]\d+\.?\d*\b", ""),  # sizes, by a Latin x or a Cyrillic one
    (r"\b\s+\:\s+", ": "),
    (r"(\D[,\./])\b", r"\1 "),
    (r"\s+", " "),
    (r"^[\"\']([\w\W]+)[\"\']$", r"\1"),
    (r"^[\'\_,\-\:;]", ""),
    (r"[\'\_,\-\:\-\+]$", ""),
    (r"^\.\S+$", ""),
)


def clean_caption(prompt: str) -> str:
    """A prompt as the published code cleans it, twice: what the first time lays bare the second takes."""
    return clean_once(clean_once(prompt))


def tidy(prompt: str) -> str:
    """A prompt with broken Unicode mended, HTML entities resolved and whitespace collapsed, in any language."""
    mended = require("ftfy", "cleaning prompts").fix_text(prompt)
    return re.sub(r"\s+", " ", html.unescape(html.unescape(mended))).strip()


CLEANERS = {"published": clean_caption, "any-language": tidy}


def clean_once(prompt: str) -> str:
    """All rules once, in the published order."""
    text = applied(LINKS, unquote_plus(prompt).strip().lower())
    text = applied(SIGNS, without_markup(text))
    if len(JOINTS.findall(text)) > MOST_JOINTS:
        text = JOINTS.sub(" ", text)
    text = require("ftfy", "cleaning prompts").fix_text(text)
    return applied(NOISE, html.unescape(html.unescape(text))).strip()


def applied(some: Rules, text: str) -> str:
    for pattern, new in some:
        text = pattern.sub(new, text)
    return text


class Words(HTMLParser):
    """Collects what a page shows."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.shown: list[str] = []
        self.hidden = ""  # the tag that we are in, if its contents are not shown

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("script", "style"):
            self.hidden = tag

    def handle_endtag(self, tag: str) -> None:
        if tag == self.hidden:
            self.hidden = ""

    def handle_data(self, data: str) -> None:
        if not self.hidden:
            self.shown.append(data)


def without_markup(text: str) -> str:
    """Text without HTML tags and comments, entities resolved."""
    words = Words()
    words.feed(text)
    words.close()
    return "".join(words.shown)
