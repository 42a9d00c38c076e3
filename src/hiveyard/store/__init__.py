"""The database and the journal: append, read, follow. It must not know what makes events, nor who reads them.

database.py     open_store, Store: write, read, follow
journal.py      record (an event and the state it leads to), events, raw lines, forget
projections.py  how rows follow from events
views.py        rows as dataclasses, and the reads that give them
names.py        slugs and references that people type
mirror.py       the same events as JSON lines in each session's directory

writer.py       groups of writes, one commit each     tail.py      the latest events, for followers
sqlite.py       postgres.py                           migrate.py   migrations/
schema.py       outbox.py       ballast.py            failures.py
"""
