"""The Lua scripts: one atomic act each, in a file of its own below `lua/`.

Each is preceded by the names of the keys and by `prelude.lua`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from queuebridge.storage.redis.keys import keys_in_lua


@dataclass(frozen=True, slots=True)
class Script:
    """A script as Redis gets it.

    Attributes:
        text: The source.
        sha: By which Redis knows it, once it has run.
    """

    text: str
    sha: str


@cache
def load_script(name: str) -> Script:
    """Return the script in the file `name`.lua."""
    text = "\n".join([keys_in_lua(), _source("prelude"), _source(name)])
    return Script(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


@cache
def _source(name: str) -> str:
    return (files("queuebridge.storage.redis") / "lua" / f"{name}.lua").read_text(encoding="utf-8")
