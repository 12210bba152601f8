"""URLs: what is one, and how one is written where people read it."""

from __future__ import annotations

import re

_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*(::[^/]*)?://", re.IGNORECASE)

_CHAIN = re.compile(r"::(?=[a-z])")

_IN_TEXT = re.compile(r"[a-z][a-z0-9+.-]*://[^\s'\"<>]*", re.IGNORECASE)

_USER = re.compile(r"(://)(?:[^\s/?#]*|[^\s/?#:]*:(?!\d*(?:[/?#]|$))[^\s?#]*)@")

_NO_PORT = re.compile(r"(://[^\[/?#:@]*):(?!\d*(?:[/?#:]|$))[^/?#]*")


def is_url(place: object) -> bool:
    """Whether ``place`` is the URL of something that is not a file of this machine."""
    return isinstance(place, str) and _SCHEME.match(place) is not None


def shown(url: object) -> str:
    """``url`` without what may be secret: who asks, with a password, what stands for a port, and all behind a ``?``."""
    parts = [_NO_PORT.sub(r"\1:...", _USER.sub(r"\1", part)).partition("?") for part in _CHAIN.split(str(url))]
    return "::".join(f"{start}?..." if mark else start for start, mark, _ in parts)


def shown_in(text: object) -> str:
    """``text`` with all URLs in it as they are `shown`; those that are already stay as they are."""
    return _IN_TEXT.sub(lambda url: "?...".join(map(shown, url[0].split("?...", 1))), str(text))
