"""Pictures, sound and film in messages: by address, as files of this machine, or as data."""

import asyncio
import base64
import mimetypes
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from callsheet.errors import MessageError

MOST = 64 * 1024 * 1024
"""Bytes of one file or download."""

TIMEOUT = 60.0
"""Seconds that a download may be silent."""

KINDS = ("image", "audio", "video")

_MAGIC: tuple[tuple[int, bytes, str], ...] = (
    (0, b"\x89PNG\r\n\x1a\n", "image/png"), (0, b"\xff\xd8\xff", "image/jpeg"), (0, b"GIF8", "image/gif"),
    (8, b"WEBP", "image/webp"), (4, b"ftyphei", "image/heic"), (4, b"ftypmif1", "image/heif"),
    (8, b"WAVE", "audio/wav"), (0, b"ID3", "audio/mp3"), (0, b"\xff\xfb", "audio/mp3"), (0, b"fLaC", "audio/flac"),
    (0, b"OggS", "audio/ogg"), (8, b"AIFF", "audio/aiff"), (4, b"ftyp", "video/mp4"),
    (0, b"\x1a\x45\xdf\xa3", "video/webm"), (8, b"AVI ", "video/avi"),
)


def local_file(url: str) -> Path | None:
    """The file of this machine that an address names, as a path or a file:// address; None where there is none."""
    path = Path(url.removeprefix("file://"))
    try:
        return path if path.is_file() else None
    except (OSError, ValueError):  # a name that no file can have
        return None


def web_url(url: str, block: dict[str, Any]) -> str:
    """`url`, if it is an address of the web.

    Raises:
        MessageError: it is neither that nor a file here.
    """
    if urlsplit(url.removeprefix("file://")).scheme in ("", "file"):
        raise MessageError(f"The {block['type']} at {url!r} is neither a file on this machine nor an address of the "
                           "web. Where workers run elsewhere, give its data: a source of type base64.")
    return url


async def data_of(block: dict[str, Any], *, download: bool = False) -> tuple[str, str] | None:
    """A block's media type and its data as base64.

    Args:
        block: image, audio or video.
        download: fetch what is on the web; if not, that gives None.

    Raises:
        MessageError: there is nothing at the address, or nothing that is media.
    """
    source = block["source"]
    if source["type"] == "base64":
        return source["media_type"], source["data"]
    url = source["url"]
    path = local_file(url)
    if path is not None:
        raw = await asyncio.to_thread(_read, path, block)
        return _media_type(raw, path.name, None, block), base64.b64encode(raw).decode()
    web_url(url, block)
    if not download:
        return None
    raw, kind = await _fetched(url, block)
    return _media_type(raw, urlsplit(url).path, kind, block), base64.b64encode(raw).decode()


async def url_of(block: dict[str, Any]) -> str:
    """A block's address on the web, or its data as a data: address."""
    found = await data_of(block)
    return str(block["source"]["url"]) if found is None else f"data:{found[0]};base64,{found[1]}"


def _read(path: Path, block: dict[str, Any]) -> bytes:
    try:
        if path.stat().st_size > MOST:
            raise MessageError(f"The {block['type']} {path} has over {MOST} bytes. Give a smaller one.")
        return path.read_bytes()
    except OSError as exc:
        raise MessageError(f"The {block['type']} {path} cannot be read: {exc.strerror}.") from exc


async def _fetched(url: str, block: dict[str, Any]) -> tuple[bytes, str | None]:
    parts: list[bytes] = []
    try:
        async with (httpx.AsyncClient(timeout=TIMEOUT, follow_redirects=True) as http,
                    http.stream("GET", url) as response):
            response.raise_for_status()
            async for part in response.aiter_bytes():
                parts.append(part)
                if sum(map(len, parts)) > MOST:
                    raise MessageError(f"The {block['type']} at {url} has over {MOST} bytes. Give a smaller one.")
    except (httpx.HTTPError, httpx.InvalidURL) as exc:
        raise MessageError(f"The {block['type']} at {url} cannot be fetched: {exc}. This provider takes data, not "
                           "addresses: give it with a source of type base64.") from exc
    return b"".join(parts), response.headers.get("content-type", "").partition(";")[0] or None


def _media_type(raw: bytes, name: str, told: str | None, block: dict[str, Any]) -> str:
    """What the data are: by their first bytes, else by what a server told, else by a file's name.

    Nothing but media passes, so that a message cannot have any other file of the machine sent away.
    """
    for start, magic, found in _MAGIC:
        if raw[start:start + len(magic)] == magic:
            return found
    for guess in (told, mimetypes.guess_type(name)[0]):
        if guess and guess.partition("/")[0] in KINDS:
            return guess
    raise MessageError(f"The {block['type']} {name!r} is no image, sound or film that is known here. Give it with a "
                       "source of type base64 and its media_type.")
