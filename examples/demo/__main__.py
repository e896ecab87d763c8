"""Start the demo on http://127.0.0.1:8000. PORT and CYSESSION_DEMO_DIR (where sessions are kept) override.

Kill it as hard as you like and start it again: whoever was logged in still is.
"""

import os
import warnings
from datetime import timedelta
from pathlib import Path

import uvicorn

from cysession import FileStorage, Manager
from cysession.asgi import SessionMiddleware

from .shop import Shop

ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    port = int(os.environ.get("PORT") or 8000)
    directory = Path(os.environ.get("CYSESSION_DEMO_DIR") or ROOT / "var" / "demo-sessions")
    directory.parent.mkdir(parents=True, exist_ok=True)
    manager = Manager(ttl=timedelta(days=1), storage=FileStorage(directory), max_age=timedelta(days=30))

    # Plain http on the loopback is what this demo is for, so it needs no warning. Behind https leave out
    # insecure=True: the cookie is then Secure and called __Host-id.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        app = SessionMiddleware(Shop(manager), manager, insecure=True)

    print(f"cysession demo: http://127.0.0.1:{port}  (sessions in {directory}; stop with Ctrl-C)", flush=True)
    with manager:
        uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning", server_header=False)


if __name__ == "__main__":
    main()
