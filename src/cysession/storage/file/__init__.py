"""FileStorage: sessions in files of a private directory, shared by all processes of one host and user.

storage.py    FileStorage itself: the record protocol over the parts below
records.py    one record in one file: its name, its bytes, what a reader may believe
directory.py  the private directory: how it is found, made, checked and found again; what an OSError means
locks.py      who may write: stripes of locks between threads and between processes
survey.py     what operators want to know of the sessions and of the place
sweeper.py    removes what has expired or was left behind, a little at a time
seal.py       encryption at rest
nowhere.py    FileStorage on Windows: says that there is none
"""

import sys

if sys.platform == "win32":
    from .nowhere import FileStorage as FileStorage
else:
    from .storage import FileStorage as FileStorage
