"""Every method of QStash's TypeScript client against the embedded server: `tox run -e typescript-suite`.

Needs Node.js 20 or newer and npm. The client comes from npm, and nothing of it is changed but base URL, token and keys.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from queuebridge.backends.qstash.devserver import EngineSettings, ServerSettings, running_server
from queuebridge.backends.qstash.protocol import DEFAULT_DEV_USER

HERE = Path(__file__).resolve().parent
# The version whose methods the tests name.
CLIENT = "@upstash/qstash@2.12.0"
LONGEST_SECONDS = 300


def main() -> int:
    """Run the tests; return their exit status."""
    npm, node = shutil.which("npm"), shutil.which("node")
    if npm is None or node is None:
        print("Node.js and npm are needed, and are not installed.")
        return 2
    with tempfile.TemporaryDirectory(prefix="typescript-suite-") as temporary:
        folder = Path(temporary)
        (folder / "package.json").write_text(json.dumps({"private": True, "type": "module"}))
        subprocess.run(
            [npm, "install", "--no-audit", "--no-fund", "--loglevel=error", CLIENT],
            cwd=folder,
            check=True,
            timeout=LONGEST_SECONDS,
        )
        for source in HERE.glob("typescript_suite*.mjs"):
            shutil.copy(source, folder)
        # Waits before retries are a thousandth of the real ones.
        settings = ServerSettings(port=0, engine=EngineSettings(time_scale=1000.0))
        with running_server(settings) as url:
            done = subprocess.run(
                [node, "--test", "--test-reporter=spec", *sys.argv[1:], "typescript_suite.mjs"],
                cwd=folder,
                env={
                    "PATH": os.environ["PATH"],
                    "HOME": temporary,
                    "QSTASH_URL": url,
                    "QSTASH_TOKEN": DEFAULT_DEV_USER.token,
                    "QSTASH_CURRENT_SIGNING_KEY": DEFAULT_DEV_USER.current_signing_key,
                    "QSTASH_NEXT_SIGNING_KEY": DEFAULT_DEV_USER.next_signing_key,
                },
                check=False,
                timeout=LONGEST_SECONDS,
            )
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
