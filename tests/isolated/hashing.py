"""Print where the table puts a thousand ids, by the order in which it lists them (R41)."""

import sys

from cysession._core import SessionTable

table = SessionTable()
for n in range(1000):
    table.add(f"id-{n}")
sys.stdout.write("ok\n")
sys.stdout.write(repr([name for shard in range(64) for name, _ in table.snapshot(shard)]))
