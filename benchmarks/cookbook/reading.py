"""Reading the files of artefacts, which may be damaged or of another kind."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wafervlm.errors import FileFormatError


def read_json(path: Path, needed: Sequence[str] = ()) -> Any:
    """What a JSON file holds, an object with the keys ``needed`` where there are some. Raises
    FileFormatError."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise FileFormatError(f"{path} cannot be read as JSON: {error}; make it again") from None
    found = parsed(text, path)
    if missing := [key for key in needed if not isinstance(found, dict) or key not in found]:
        raise FileFormatError(f"{path} lacks {', '.join(missing)}; name the file that the command wrote")
    return found


def parsed(text: str, path: Path) -> Any:
    """``text``, which stands in ``path``, as JSON. Raises FileFormatError."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"{path} is no whole JSON: {error}; make it again") from None
