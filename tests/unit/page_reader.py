"""What a browser would find in a page."""

from __future__ import annotations

from html.parser import HTMLParser


class PageReader(HTMLParser):
    """A page's elements with their attributes, its title, h2 headings, scripts, and visible text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {"title": [], "h2": [], "script": [], "style": []}
        self.text = ""
        self._open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._open.append(tag)
        if tag in self.texts:
            self.texts[tag].append("")

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        tag = self._open[-1] if self._open else ""
        if tag in self.texts:
            self.texts[tag][-1] += data
        if tag not in ("script", "style"):
            self.text += data
