"""A cart in FastAPI: `uvicorn examples.fastapi_app:app`, then try it at http://127.0.0.1:8000/docs.

To keep Starlette's arguments instead, change one import: `from cysession.starlette import SessionMiddleware`.
"""

from fastapi import FastAPI, HTTPException, WebSocket

from cysession import Manager
from cysession.asgi import SessionMiddleware
from cysession.starlette import SessionDep, get_session

app = FastAPI(title="A cart")
# insecure=True is for plain http; behind https leave it out.
app.add_middleware(SessionMiddleware, manager=Manager(ttl=3600), insecure=True)


@app.post("/login/{user}")
async def log_in(user: str, session: SessionDep) -> dict[str, str]:
    await session.aregenerate_id()  # whoever knew the id from before the log-in knows nothing now
    session["user"] = user
    return {"user": user}


@app.post("/cart/{item}")
async def add(item: str, session: SessionDep) -> list[str]:
    cart: list[str] = session.setdefault("cart", [])
    cart.append(item)  # changed in place, and still stored
    return cart


@app.get("/cart")
async def show(session: SessionDep) -> dict[str, object]:
    if "user" not in session:
        raise HTTPException(401, "log in first")
    return {"user": session["user"], "cart": session.get("cart", [])}


@app.post("/logout", status_code=204)
async def log_out(session: SessionDep) -> None:
    await session.adestroy()


@app.websocket("/cart/live")
async def live(websocket: WebSocket) -> None:
    """Adds each line that is received."""
    session = get_session(websocket)
    await websocket.accept()
    async for item in websocket.iter_text():
        session.setdefault("cart", []).append(item)
        await session.asave()  # others see it now, and not only when the connection ends
        await websocket.send_text(f"{len(session['cart'])} in the cart")
