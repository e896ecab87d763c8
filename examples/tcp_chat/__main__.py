"""Start the chat on 127.0.0.1:7000, then `nc 127.0.0.1 7000` and say NEW. PORT and CYSESSION_CHAT_DIR override.

Ids travel readable: between machines put TLS in front.
"""

import asyncio
import contextlib
import os
from pathlib import Path

from cysession import FileStorage, Manager

from .server import start

ROOT = Path(__file__).resolve().parents[2]


async def main() -> None:
    port = int(os.environ.get("PORT") or 7000)
    directory = Path(os.environ.get("CYSESSION_CHAT_DIR") or ROOT / "var" / "chat-sessions")
    directory.parent.mkdir(parents=True, exist_ok=True)
    async with Manager(ttl=86400, storage=FileStorage(directory)) as manager:
        server = await start(manager, port=port)
        print(f"chat on 127.0.0.1:{port}  (sessions in {directory}; stop with Ctrl-C)", flush=True)
        async with server:
            await server.serve_forever()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main())
