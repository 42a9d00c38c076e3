"""The hive: members that are woken by their mail, write to each other, ask the operator, and remember.

A member is a session whose turns are started by its mailbox. Messages, answers to its questions and due reminders are
all messages in it, so one rule wakes a member. `hive.py` records facts and needs no running engine; `members.py` and
`wake_loop.py` act on sessions."""
