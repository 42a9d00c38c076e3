"""The database and the journal: append, read and follow events. It knows neither the writers nor the readers.

The journal is the list of all events. The tables of tasks, sessions, machines and turns follow from it.

database.py     open_store, Store: write, read, follow
journal.py      record (an event and the state it leads to), events, raw lines, forget
projections.py  the rows that follow from events
views.py        rows as dataclasses, and the functions that read them
lineage.py      which events of a session still count after rewinds and imports
phases.py       the durations of a task's phases
names.py        slugs, and the references that users type
mirror.py       the same events as JSON lines in each session's directory

writer.py       groups of writes, one commit each     tail.py       the latest events, for followers
sqlite.py       postgres.py                           migrate.py    migrations/
schema.py       outbox.py                             prepared.py   statements that run for every event
ballast.py      disk space held in reserve            failures.py
"""
