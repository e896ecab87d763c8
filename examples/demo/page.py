"""The page of the demo, by hand: HTML in, session facts in, bytes out. The id itself is never shown."""

import os
import time
from html import escape

from cysession import Session
from cysession.ids import fingerprint

PRODUCTS = {  # name: (what it is, cents)
    "Assam": ("black tea, 100&nbsp;g", 690),
    "Sencha": ("green tea, 100&nbsp;g", 840),
    "Rooibos": ("no caffeine, 150&nbsp;g", 520),
    "Biscuits": ("twelve of them", 380),
}
ICON = (
    "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 32 32'%3E"
    "%3Crect width='32' height='32' rx='8' fill='%230f766e'/%3E"
    "%3Cpath d='M21 12a6 6 0 1 0 0 8' fill='none' stroke='white' stroke-width='3' stroke-linecap='round'/%3E"
    "%3C/svg%3E"
)


def document(body: str) -> bytes:
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>cysession demo</title>
<link rel="icon" href="{ICON}">
<link rel="stylesheet" href="/style.css">
</head>
<body>
{body}
</body>
</html>
""".encode()


def notice(text: str) -> bytes:
    return document(
        f'<main class="notice"><p>{escape(text)}</p><p><a href="/">Back to the shop</a></p></main>'
    )


def shop(session: Session, *, live: int, started: float) -> bytes:
    csrf = f'<input type="hidden" name="csrf" value="{escape(session["csrf"])}">'
    user = session.get("user")
    return document(f"""
<header class="top">
  <p class="brand"><span aria-hidden="true">c</span> cysession <small>demo shop</small></p>
  {account(user, csrf)}
</header>
<main>
  <section class="hello" aria-labelledby="hello">
    <h1 id="hello">{"Hello, " + escape(user) if user else "Hello, stranger"}</h1>
    <p>{visits(session["visits"])} Reload, fill the cart, log in, stop the server and start it again:
    this page remembers, because it keeps everything in a session on the server.</p>
  </section>
  <div class="columns">
    <div>
      {products(csrf)}
      {cart(session.get("cart", []), csrf)}
    </div>
    {panel(session, live, started)}
  </div>
</main>
<footer><p>Your browser holds one cookie with a random id and nothing else.</p></footer>""")


def account(user: str | None, csrf: str) -> str:
    if user:
        return f"""<form method="post" action="/logout" class="account">{csrf}
    <span>Logged in as <strong id="user">{escape(user)}</strong></span>
    <button class="quiet" id="logout">Log out</button></form>"""
    return f"""<form method="post" action="/login" class="account">{csrf}
    <label for="name">Your name</label>
    <input id="name" name="name" required maxlength="40" autocomplete="nickname" placeholder="any will do">
    <button id="login">Log in</button></form>"""


def visits(number: int) -> str:
    times = "time" if number == 1 else "times"
    return f'You have looked at this page <strong id="visits">{number}</strong> {times}.'


def products(csrf: str) -> str:
    rows = "".join(
        f"""<li><span class="tile" aria-hidden="true">{name[0]}</span>
      <span class="what"><strong>{name}</strong><small>{what}</small></span>
      <span class="price">{money(cents)}</span>
      <form method="post" action="/cart/add">{csrf}
      <button name="item" value="{name}" aria-label="Add {name} to the cart">Add</button></form></li>"""
        for name, (what, cents) in PRODUCTS.items()
    )
    return f"""<section class="card" aria-labelledby="products">
    <h2 id="products">Shelf</h2><ul>{rows}</ul></section>"""


def cart(items: list[str], csrf: str) -> str:
    if not items:
        body = '<p class="empty">Nothing in it yet.</p>'
    else:
        rows = "".join(
            f"""<li><span class="what"><strong>{name}</strong></span>
      <span class="count">{items.count(name)} &times;</span>
      <span class="price">{money(PRODUCTS[name][1] * items.count(name))}</span>
      <form method="post" action="/cart/remove">{csrf}
      <button class="quiet" name="item" value="{name}" aria-label="Remove one {name}">Remove</button>
      </form></li>"""
            for name in dict.fromkeys(items)
        )
        total = money(sum(PRODUCTS[name][1] for name in items))
        body = f'<ul>{rows}</ul><p class="total">Together <strong id="total">{total}</strong></p>'
    return f"""<section class="card" aria-labelledby="cart">
    <h2 id="cart">Cart <span class="badge" id="cart-size">{len(items)}</span></h2>{body}</section>"""


def panel(session: Session, live: int, started: float) -> str:
    """What the server knows about this browser. Fingerprints name a session without giving it away."""
    now = time.time()
    rotation = session.get("rotation")
    created, ends = session.created_at, session.expires_at
    facts = [
        ("Fingerprint", f'<code id="fingerprint">{fingerprint(session.id)}</code>'),
        (
            "Id changed at log-in",
            "<code>{}</code> to <code>{}</code>".format(*rotation) if rotation else "not yet",
        ),
        ("Stored", f"{clock(created)} ({span(now - created)} ago)" if created else "with this response"),
        ("Ends if unused", f"in {span(ends - now)}" if ends else f"in {span(session.ttl)}"),
        ("Keys", f"{len(session)}: {escape(', '.join(session))}"),
    ]
    rows = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts)
    return f"""<aside class="card panel" aria-labelledby="panel">
    <h2 id="panel">This browser&rsquo;s session</h2><dl>{rows}</dl>
    <h2>This server</h2><dl>
    <div><dt>Sessions alive</dt><dd><strong id="live">{live}</strong></dd></div>
    <div><dt>Process</dt><dd><span id="pid">{os.getpid()}</span>, up since {clock(started)}</dd></div>
    <div><dt>Storage</dt><dd>files, private to this user</dd></div></dl></aside>"""


def money(cents: int) -> str:
    return f"&euro;&nbsp;{cents // 100}.{cents % 100:02d}"


def clock(moment: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(moment))


def span(seconds: float) -> str:
    """A length of time in its largest whole unit."""
    for unit, size in (("day", 86400), ("hour", 3600), ("minute", 60), ("second", 1)):
        number = round(seconds / size)
        if number >= 2 or (unit == "second"):
            return f"{number} {unit}{'' if number == 1 else 's'}"
    raise AssertionError
