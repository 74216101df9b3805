"""For `make docs`: what a page says of files outside docs/ is checked, and shown as their path."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

OUTSIDE = re.compile(r"\[([^\]]+)\]\(\.\./([^)#\s]+)(?:#[^)]*)?\)")
ROOT = Path(__file__).resolve().parent.parent


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """A link that leaves docs/ becomes the path of the file; raises FileNotFoundError where there is none."""

    def shown(found: re.Match[str]) -> str:
        text, path = found.groups()
        if not (ROOT / path).exists():
            raise FileNotFoundError(f"docs/{page.file.src_path}: ../{path} does not exist")
        return text if path in text else f"{text} (`{path}`)"

    return OUTSIDE.sub(shown, markdown)
