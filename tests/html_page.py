"""Reads a report as a browser would, for the tests of the HTML renderers."""

from html.parser import HTMLParser


class Page(HTMLParser):
    """Collects what a browser would fetch, the words outside scripts, and tags that do not close."""

    VOID = frozenset({"meta", "br"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.words: list[str] = []
        self.styles: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        given = dict(attrs)
        if tag in ("link", "img", "iframe", "base", "object", "embed") or "src" in given:
            self.fetched.append(f"{tag} {attrs}")
        self.ids += [given["id"] or ""] if "id" in given else []
        self.links += [given["href"] or ""] if tag == "a" else []

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "style":
            self.styles.append(data)
        elif "script" not in self.open:
            self.words.append(data)
