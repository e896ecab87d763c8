"""A guest book in Flask: log in, sign, log out everywhere. `flask --app examples.flask_app run`, http://127.0.0.1:5000.

Without the two marked lines it would run on Flask's own cookie sessions, and would need a secret key.
"""

from flask import Flask, flash, redirect, render_template_string, request, session, url_for

from cysession import Manager
from cysession.flask import CySession  # 1

PAGE = """
<!doctype html><title>Guest book</title>
{% for message in get_flashed_messages() %}<p>{{ message }}</p>{% endfor %}
{% if session.user %}
  <p>Hello {{ session.user }}, you wrote: {{ session.notes | join(", ") }}</p>
  <form method="post" action="/notes"><input name="note"><button>Sign</button></form>
  <form method="post" action="/logout"><button>Log out</button></form>
  <form method="post" action="/logout-everywhere"><button>Log out everywhere</button></form>
{% else %}
  <form method="post" action="/login">
    <input name="user" placeholder="Your name" required>
    <label><input type="checkbox" name="stay"> Stay logged in</label>
    <button>Log in</button>
  </form>
{% endif %}
"""

app = Flask(__name__)
manager = Manager(ttl=3600)
CySession(app, manager, insecure=True)  # 2; insecure=True is for plain http, behind https leave it out


@app.get("/")
def home():
    return render_template_string(PAGE)


@app.post("/login")
def log_in():
    session.regenerate_id()  # whoever knew the id from before the log-in knows nothing now
    session.permanent = "stay" in request.form
    session["user"] = request.form["user"]
    session.setdefault("notes", [])
    session.bind(request.form["user"])
    flash("Welcome!")
    return redirect(url_for("home"))


@app.post("/notes")
def sign():
    if "user" in session:
        session["notes"].append(request.form["note"])  # changed in place, and still stored
    return redirect(url_for("home"))


@app.post("/logout")
def log_out():
    session.destroy()
    flash("Goodbye.")
    return redirect(url_for("home"))


@app.post("/logout-everywhere")
def log_out_everywhere():
    if "user" in session:
        manager.revoke(session["user"], keep=session.core)
        session.destroy()
    return redirect(url_for("home"))
