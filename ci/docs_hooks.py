"""What mkdocs.yml calls: links out of docs/ are links in the repository, and plain text on the site.

A link whose target is not there fails the build in both places.
"""

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
OUTSIDE = re.compile(r"\[([^\]]+)\]\(((?:\.\./)+[^)#]*)(#[^)]*)?\)")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    here = ROOT / "docs" / page.file.src_uri

    def plain(link: re.Match[str]) -> str:
        target = (here.parent / link[2]).resolve()
        if not target.exists():
            raise FileNotFoundError(f"{page.file.src_uri} links to {link[2]}, which is not there")
        return link[0] if target.is_relative_to(ROOT / "docs") else link[1]

    return OUTSIDE.sub(plain, markdown)
