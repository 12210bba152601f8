"""URLs: what is one, and how errors show one."""

from __future__ import annotations

import re

_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*(::[^/]*)?://", re.IGNORECASE)

_CHAIN = re.compile(r"::(?=[a-z])")

_IN_TEXT = re.compile(r"[a-z][a-z0-9+.-]*://[^\s'\"<>]*[^\s'\"<>,;]", re.IGNORECASE)

_USER = re.compile(r"(://)(?:[^\s/?#]*|[^\s/?#:]*:(?!\d*(?:[/?#]|$))[^\s?#]*)@")

_NO_PORT = re.compile(r"(://[^\[/?#:@]*):(?!\d*(?:[/?#:]|$))[^/?#]*")


def is_url(place: object) -> bool:
    """Whether ``place`` is a URL, and not a path."""
    return isinstance(place, str) and _SCHEME.match(place) is not None


def shown(url: object) -> str:
    """``url`` without possible secrets: user and password, a port that is no number, and the query."""
    parts = [_NO_PORT.sub(r"\1:...", _USER.sub(r"\1", part)).partition("?") for part in _CHAIN.split(str(url))]
    return "::".join(f"{start}?..." if mark else start for start, mark, _ in parts)


def shown_in(text: object) -> str:
    """``text`` with all of its URLs as `shown` writes them, which changes none that was written so before."""
    return _IN_TEXT.sub(lambda url: "?...".join(map(shown, url[0].split("?...", 1))), str(text))
