"""What clients call us, where that is not what we see: a proxy may give us another name, and a path."""

from urllib.parse import urlsplit


class Public:
    """The address that clients use, as the setting `public_url` names it; "" for none of its own."""

    def __init__(self, url: str = "") -> None:
        #: Without a slash at its end.
        self.url = url.rstrip("/")
        parts = urlsplit(self.url)
        #: Path before ours, such as `/jobs`.
        self.prefix = parts.path
        #: Scheme, host and port, as browsers write them.
        self.origin = f"{parts.scheme}://{parts.netloc}" if parts.netloc else ""

    def inside(self, path: str) -> str:
        """A path as clients write it, as our routes know it. Who comes past the proxy writes no prefix."""
        if self.prefix and path.startswith(f"{self.prefix}/"):
            return path[len(self.prefix) :]
        return path

    def outside(self, path: str) -> str:
        """One of our paths as clients have to write it."""
        return self.prefix + path
