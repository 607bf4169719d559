"""Pictures, sound and film in messages: by address, as files of this machine, or as data."""

import asyncio
import base64
import re
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, unquote_to_bytes, urlsplit

import httpx

from callsheet.errors import MessageError
from callsheet.resources.outbound import fetched
from callsheet.settings import get_settings

MOST = 64 * 1024 * 1024
"""Bytes of one file or download."""

KINDS = ("image", "audio", "video")

#: By what a file's first bytes are; its name, and what a server says of it, count for nothing.
_MAGIC: tuple[tuple[bytes, str], ...] = (
    (rb"\x89PNG\r\n\x1a\n", "image/png"), (rb"\xff\xd8\xff", "image/jpeg"), (rb"GIF8[79]a", "image/gif"),
    (rb"RIFF....WEBP", "image/webp"), (rb"\0\0..ftyphe[ivm]", "image/heic"), (rb"\0\0..ftypm[is]f1", "image/heif"),
    (rb"\0\0..ftypavi[fs]", "image/avif"), (rb"BM....\0{4}", "image/bmp"), (rb"II\*\0|MM\0\*", "image/tiff"),
    (rb"RIFF....WAVE", "audio/wav"), (rb"ID3[\x02-\x04]|\xff[\xe2\xe3\xf2\xf3\xfa\xfb]", "audio/mp3"),
    (rb"\xff[\xf1\xf9]", "audio/aac"), (rb"fLaC\0", "audio/flac"), (rb"OggS\0", "audio/ogg"),
    (rb"FORM....AIF[FC]", "audio/aiff"), (rb"\.snd\0\0\0", "audio/basic"), (rb"\0\0..ftypM4A", "audio/mp4"),
    (rb"\0\0..ftypqt", "video/quicktime"), (rb"\0\0..ftyp3g", "video/3gpp"), (rb"\0\0..ftyp", "video/mp4"),
    (rb"\x1a\x45\xdf\xa3", "video/webm"), (rb"RIFF....AVI ", "video/avi"), (rb"\0\0\x01[\xba\xb3]", "video/mpeg"),
    (rb"FLV\x01", "video/x-flv"), (rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "video/x-ms-wmv"),
)
_SPELT = {"image/jpg": "image/jpeg", "audio/mpeg": "audio/mp3", "audio/x-wav": "audio/wav", "audio/wave": "audio/wav"}
_STANDARD = str.maketrans("-_", "+/")
_KNOWN = [(re.compile(start, re.DOTALL), kind) for start, kind in _MAGIC]


def local_file(url: str, block: dict[str, Any]) -> Path | None:
    """The file of this machine that an address names, as a path or a file:// address; None where there is none.

    Raises:
        MessageError: it is in none of the folders whose files messages may name.
    """
    given = url.removeprefix("file://localhost").removeprefix("file://")
    folders = [Path(tempfile.gettempdir() if folder == "temp" else folder).resolve()
               for folder in get_settings().media_folders]
    outside = False
    for name in dict.fromkeys((given, unquote(given) if given != url else given)):
        try:
            path = Path(name).resolve()  # a link counts as what it points to
            if not any(path.is_relative_to(folder) for folder in folders):
                outside = True
            elif path.is_file():
                return path
        except (OSError, ValueError):  # a name that no file can have
            continue
    if outside and urlsplit(url).scheme.lower() not in ("http", "https"):  # whether it is there is not told
        raise MessageError(f"The {block['type']} at {url!r} is in no folder whose files may be sent. Put it into one, "
                           "or add its folder to CALLSHEET_MEDIA_FOLDERS where workers run.")
    return None


def web_url(url: str, block: dict[str, Any]) -> str:
    """`url`, if it is an address of the web, with escapes for what may not stand in one.

    Raises:
        MessageError: it is neither that nor a file here.
    """
    if urlsplit(url).scheme.lower() not in ("http", "https"):
        raise MessageError(f"The {block['type']} at {url!r} is neither a file on this machine nor an address of the "
                           "web. Where workers run elsewhere, give its data: a source of type base64.")
    return quote(url.strip(), safe="%/:?#[]@!$&'()*+,;=~")


async def data_of(block: dict[str, Any]) -> tuple[str, str]:
    """A block's media type and its data as base64; what is on the web is fetched.

    Args:
        block: image, audio or video.

    Raises:
        MessageError: there is nothing at the address, or nothing that is media.
    """
    found = await data_here(block)
    if found is None:
        url = block["source"]["url"]
        found = _encoded(await _fetched(url, block), urlsplit(url).path, block)
    return found


async def data_here(block: dict[str, Any]) -> tuple[str, str] | None:
    """As `data_of`; None for what is on the web."""
    source = block["source"]
    if source["type"] == "base64":
        said = source["data"]
        return _within(said, block) if _is_data(said) else _told(source["media_type"], said)
    url = source["url"]
    if _is_data(url):
        return _within(url, block)
    path = local_file(url, block)
    if path is not None:
        return _encoded(await asyncio.to_thread(_read, path, block), path.name, block)
    web_url(url, block)
    return None


def _within(url: str, block: dict[str, Any]) -> tuple[str, str]:
    """The media type and base64 of a data: address."""
    head, comma, data = url.strip()[len("data:"):].partition(",")
    kind, *more = head.split(";")
    if not comma or not kind:
        raise MessageError(f"The {block['type']}'s data: address has no media type, or no data: "
                           "data:image/png;base64,... is needed.")
    coded = any(word.strip().lower() == "base64" for word in more)
    return _told(kind, unquote(data) if coded else base64.b64encode(unquote_to_bytes(data)).decode())


def _is_data(url: str) -> bool:
    return url[:20].lstrip()[:5].lower() == "data:"


def _told(kind: str, data: str) -> tuple[str, str]:
    """The type that data are said to have, unless their first bytes say otherwise, and base64 as providers take it."""
    plain = "".join(data.split()).rstrip("=").translate(_STANDARD)
    plain += "=" * (-len(plain) % 4)
    kind = kind.strip().lower()
    try:
        head = base64.b64decode(plain[:64])
    except ValueError:
        return kind, data  # the provider may say what is wrong with it
    return next((found for start, found in _KNOWN if start.match(head)), _SPELT.get(kind, kind)), plain


async def url_of(block: dict[str, Any]) -> str:
    """A block's address on the web, or its data as a data: address."""
    found = await data_here(block)
    return web_url(str(block["source"]["url"]), block) if found is None else f"data:{found[0]};base64,{found[1]}"


def _read(path: Path, block: dict[str, Any]) -> bytes:
    try:
        with path.open("rb") as file:
            raw = file.read(MOST + 1)  # what a file tells of its size need not be so
    except OSError as exc:
        raise MessageError(f"The {block['type']} {path} cannot be read: {exc.strerror}.") from exc
    if len(raw) > MOST:
        raise _too_large(str(path), block)
    return raw


async def _fetched(url: str, block: dict[str, Any]) -> bytes:
    try:
        raw = await fetched(url, MOST, get_settings().media_hosts)
    except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as exc:
        raise MessageError(f"The {block['type']} at {url} cannot be fetched: {str(exc) or 'it takes too long'}. This "
                           "provider takes data, not addresses: give it with a source of type base64.") from exc
    if raw is None:
        raise _too_large(url, block)
    return raw


def _too_large(name: str, block: dict[str, Any]) -> MessageError:
    return MessageError(f"The {block['type']} {name} has over {MOST} bytes. Give a smaller one.")


def _encoded(raw: bytes, name: str, block: dict[str, Any]) -> tuple[str, str]:
    """What the data are, and they; nothing but media passes, so that a message cannot have any other file sent away."""
    for start, kind in _KNOWN:
        if start.match(raw):
            return kind, base64.b64encode(raw).decode()
    raise MessageError(f"The {block['type']} {name!r} is no image, sound or film that is known here. Give it with a "
                       "source of type base64 and its media_type.")
