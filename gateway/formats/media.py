"""Media inside messages: what client dialects write as data URLs, taken apart and put together."""

from gateway.core.messages import Media

_IMAGE_TYPES = {"png": "png", "jpg": "jpeg", "jpeg": "jpeg", "gif": "gif", "webp": "webp"}
PDF = "application/pdf"
_USUAL = {"image/jpg": "image/jpeg"}  # what browsers say, and what it is called


def image(url: str, where: str, detail: str = "", cache: str = "") -> Media:
    """Read an image's URL, which may hold the image itself."""
    media_type, data = split_data_url(url)
    if data:
        return Media("image", media_type, data, detail=detail, cache=cache, where=where)
    ending = url.rpartition("?")[0] or url
    known = _IMAGE_TYPES.get(ending.rpartition(".")[2].lower(), "")
    kind = f"image/{known}" if known else ""
    return Media("image", kind, url=url, detail=detail, cache=cache, where=where)


def document(data: str, where: str, name: str, cache: str = "") -> Media:
    """Read a file given as a data URL, or as bare base64 of a PDF."""
    media_type, content = split_data_url(data)
    kind = media_type or PDF
    return Media("document", kind, content or data, name=name, cache=cache, where=where)


def split_data_url(url: str) -> tuple[str, str]:
    """Return the media type and the base64 of a data URL; two empty texts for another."""
    head, comma, data = url.partition(",")
    if not comma or not head.startswith("data:") or not head.endswith(";base64"):
        return "", ""
    kind = head[5:-7].partition(";")[0].lower()
    return _USUAL.get(kind, kind), data


def data_url(media: Media) -> str:
    """Return where a medium is, or the URL that holds it."""
    return media.url or f"data:{media.media_type};base64,{media.data}"
