"""Run one block of a page as a user would who copied it into a file: `python -m tests.docs.drive block.py`.

If it makes an `app`, the app gets a request and has to answer it with a session.
"""

import asyncio
import runpy
import sys
import warnings
from pathlib import Path
from typing import Any


def main(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="insecure=True")  # says what it is
        names = runpy.run_path(str(path))
    app = names.get("app")
    if app is not None:
        status = asyncio.run(status_of(app, path))
        assert status in (200, 204), status


async def status_of(app: Any, path: Path) -> int:
    from tests.web.sites import call, call_wsgi

    source = path.read_text(encoding="utf-8")
    if "Flask(" in source or "start_response" in source:
        reply = call_wsgi(app)
    else:
        reply = await call(app)
    assert len(reply.cookies) == 1, "the app was asked, and hands out no session"
    return int(reply.status)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
