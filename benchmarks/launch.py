"""The train stage in several processes, started by ``accelerate launch``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from train.config import Settings, to_dict
from train.sft import Outcome, recorded
from wafervlm import workshop
from wafervlm.errors import SetupError


def launch(settings: Settings, config: Path, count: int) -> Outcome:
    """Train as ``settings`` say in the ``count`` processes of accelerate's configuration file ``config``;
    a complete adapter is left as it is. What the processes say goes to stderr.

    Raises UsageError where the output holds something else, SetupError where the processes end with an error.
    """
    found = recorded(settings, count)
    if found is not None:
        return found
    file = Path(settings.output).with_name("train.toml")
    file.write_text("\n".join(toml_lines(to_dict(settings))) + "\n", encoding="utf-8")
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config)]
    command += ["-m", "wafervlm.cli", "train", str(file)]
    # The processes import this very checkout, wherever they are started from.
    path = os.pathsep.join([str(workshop.ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, stdout=2, check=False)
    found = recorded(settings, count) if done.returncode == 0 else None
    if found is None:
        raise SetupError(
            f"the {count} training processes ended with exit code {done.returncode}; what they said stands "
            f"above. To see it alone: {' '.join(command[3:])}"
        )
    return found


def toml_lines(table: Mapping[str, Any], name: str = "") -> Iterator[str]:
    """The TOML of nested plain values: text, numbers and booleans, tables last."""
    plain = {key: value for key, value in table.items() if not isinstance(value, Mapping)}
    if name and plain:
        yield f"[{name}]"
    for key, value in plain.items():
        # JSON's text is TOML's, but for characters beyond the basic plane when they are escaped.
        yield f"{key} = {json.dumps(value, ensure_ascii=False)}"
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from toml_lines(value, f"{name}.{key}" if name else key)
