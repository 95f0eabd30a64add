"""Reads a report as a browser would, for the tests of the HTML renderer."""

import re
from html.parser import HTMLParser


class Page(HTMLParser):
    """What a browser would fetch, the words outside scripts, the cells of tables, and tags that do not close."""

    VOID = frozenset({"meta", "br"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text
        self.open: list[str] = []
        self.tags: list[str] = []
        self.fetched: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.words: list[str] = []
        self.styles: list[str] = []
        self.rows: list[list[str]] = []
        self.feed(text)
        self.close()

    @property
    def plots(self) -> int:
        """Number of plots."""
        return self.text.count('class="plot"')

    @property
    def outside_scripts(self) -> str:
        return re.sub(r"<script[^>]*>.*?</script>", "", self.text, flags=re.DOTALL)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        given = dict(attrs)
        if tag in ("link", "img", "iframe", "base", "object", "embed") or "src" in given:
            self.fetched.append(f"{tag} {attrs}")
        self.ids += [given["id"] or ""] if "id" in given else []
        self.links += [given["href"] or ""] if tag == "a" else []
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "style":
            self.styles.append(data)
        elif "script" not in self.open:
            self.words.append(data)
            if {"td", "th"} & set(self.open):
                self.rows[-1][-1] += data

    def check(self) -> None:
        """The page is whole, opens offline, and its links lead somewhere."""
        assert self.open == []
        assert self.fetched == []
        assert not re.search(r"@import|url\(", "".join(self.styles))
        assert "http" not in self.outside_scripts
        assert self.text.count("plotly.js v") == (self.plots > 0)
        assert len(self.ids) == len(set(self.ids))
        assert {link.removeprefix("#") for link in self.links} <= set(self.ids)
