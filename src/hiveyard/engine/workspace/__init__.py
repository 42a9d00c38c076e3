"""A session's directory on the host: create it, check it, and collect the work that a guest leaves in it."""
