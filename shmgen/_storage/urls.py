"""URLs: what is one, and how one is written where people read it."""

from __future__ import annotations

import re

_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*(::[^/]*)?://")

_CHAIN = re.compile(r"::(?=[a-z])")

_IN_TEXT = re.compile(r"[a-z][a-z0-9+.-]*://[^\s'\"<>]*")

_USER = re.compile(r"(://)(?:[^\s/?#]*|[^\s/?#:]*:(?!\d*(?:[/?#]|$))[^\s?#]*)@")

_NO_PORT = re.compile(r"(://[^\[/?#:@]*):(?!\d*(?:[/?#:]|$))[^/?#]*")


def is_url(place: object) -> bool:
    """Whether ``place`` is the URL of something that is not a file of this machine."""
    return isinstance(place, str) and _SCHEME.match(place) is not None


def shown(text: object) -> str:
    """``text``, a URL or a message with URLs in it, without what may be secret.

    That is a user's name and password, what stands where a port should be, and everything behind a question mark.
    """
    text = str(text)
    return _without_secrets(text) if is_url(text) else _IN_TEXT.sub(lambda url: _without_secrets(url[0]), text)


def _without_secrets(url: str) -> str:
    parts = [_NO_PORT.sub(r"\1:...", _USER.sub(r"\1", part)).partition("?") for part in _CHAIN.split(url)]
    return "::".join(f"{start}?..." if mark else start for start, mark, _ in parts)
