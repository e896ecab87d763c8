"""The server: one line a command, one session a guest, no HTTP anywhere.

    client                      server
    NEW                         TOKEN <id>         a new guest; the id is for RESUME
    RESUME <id>                 TOKEN <new id>     the same guest after a reconnect, then what it has missed
                                ERROR ...          no such session (any more): say NEW
    NICK <name>                 OK                 others see it from now on
    SAY <text>                  OK                 everybody else gets "<name>: <text>"
    WHO                         <name>, <name>     who is here
    BYE                         BYE                the session ends for good, with all its connections

What a guest is called, how much it has said and what it has seen last is in its session, which is saved after every
command: however a connection ends, the next one finds it, after a restart of the server too. A session that resumes
gets a fresh id; the old one leads to it for the manager's grace time, in case the answer is lost on the way. What was
told to a guest after its last command may have been lost too, and is told again.
"""

import asyncio
import contextlib
import itertools
import re
import time
from collections import deque

from cysession import SessionGone, StorageUnavailable

LINE = 1024  # bytes; a longer line ends the connection
PATIENCE = 600  # seconds without a line; a guest who comes back later can resume
REMEMBERED = 100  # lines that a guest may have missed
NICK = re.compile(r"\w{1,20}")


class Chat:
    """All guests that are here."""

    def __init__(self, manager):
        self.manager = manager
        self.guests = set()
        self.lines = deque(maxlen=REMEMBERED)  # (number, who said it, line)
        self._numbers = itertools.count(time.time_ns())  # go on rising after a restart

    async def serve(self, reader, writer):
        """One connection: the callback of `asyncio.start_server(chat.serve, ..., limit=LINE)`."""
        guest = Guest(self, reader, writer)
        try:
            if await guest.arrive():
                self.guests.add(guest)
                await guest.stay()
        except (ConnectionError, asyncio.IncompleteReadError, TimeoutError):
            pass  # gone without a word: the session is as the last command left it
        except asyncio.LimitOverrunError:
            guest.tell("ERROR that line is too long")
        except SessionGone:
            guest.tell("BYE your session has ended")
        except StorageUnavailable:
            guest.tell("ERROR no sessions at the moment; RESUME later")
        finally:
            self.guests.discard(guest)
            with contextlib.suppress(ConnectionError):
                writer.close()
                await writer.wait_closed()

    def say(self, speaker, text):
        line = f"{speaker.nick}: {text}"
        self.lines.append((next(self._numbers), speaker.session["guest"], line))
        for guest in self.guests:
            if guest is not speaker:
                guest.tell(line)

    @property
    def latest(self):
        return self.lines[-1][0] if self.lines else 0


class Guest:
    """One connection and the session of whoever is at its other end."""

    def __init__(self, chat, reader, writer):
        self._chat = chat
        self._reader = reader
        self._writer = writer
        self.session = None

    @property
    def nick(self):
        return self.session["nick"]

    async def arrive(self):
        """Find out who it is. False: not somebody we can talk to."""
        word, _, token = (await self._line()).partition(" ")
        if word not in ("NEW", "RESUME"):
            self.tell("ERROR begin with NEW or RESUME <token>")
            return False
        self.session = self._chat.manager.new(token if word == "RESUME" else "")
        await self.session.aload()
        if word == "NEW":
            number = time.time_ns()
            self.session.update(guest=number, nick=f"guest{number % 10000}", said=0, seen=self._chat.latest)
            await self.session.asave()
            self.tell(f"TOKEN {self.session.id}")
            return True
        if self.session.is_new:  # ended, expired, or invented
            self.tell("ERROR no such session; say NEW")
            return False
        self.tell(f"TOKEN {await self.session.aregenerate_id(delete_old=False)}")
        for number, speaker, line in self._chat.lines:
            if number > self.session["seen"] and speaker != self.session["guest"]:
                self.tell(line)
        return True

    async def stay(self):
        while True:
            word, _, rest = (await self._line()).partition(" ")
            if word == "BYE":
                await self.session.adestroy()
                self.tell("BYE")
                return
            answer = self._obey(word, rest)
            self.session["seen"] = self._chat.latest
            await self.session.asave()  # SessionGone here: another connection has said BYE
            if word == "SAY":
                self._chat.say(self, rest)
            self.tell(answer)

    def _obey(self, word, rest):
        if word == "NICK":
            if not NICK.fullmatch(rest):
                return "ERROR a name has 1 to 20 letters and digits"
            self.session["nick"] = rest
            return "OK"
        if word == "SAY":
            self.session["said"] += 1
            return "OK"
        if word == "WHO":
            return ", ".join(sorted(guest.nick for guest in self._chat.guests))
        return "ERROR NICK, SAY, WHO or BYE"

    async def _line(self):
        """The next line; IncompleteReadError at the end of the connection."""
        line = await asyncio.wait_for(self._reader.readuntil(b"\n"), PATIENCE)
        return line.decode("utf-8", "replace").rstrip("\r\n")

    def tell(self, line):
        self._writer.write(line.encode() + b"\n")


async def start(manager, host="127.0.0.1", port=0):
    """A running asyncio server."""
    return await asyncio.start_server(Chat(manager).serve, host, port, limit=LINE)
