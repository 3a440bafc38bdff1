"""A page's elements, as a browser reads them."""

from html.parser import HTMLParser


class Tags(HTMLParser):
    """Name and attributes of each, in order."""

    def __init__(self, page):
        super().__init__()
        self.found = []
        self.feed(page.decode())

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
