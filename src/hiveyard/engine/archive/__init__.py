"""Sessions as files: export a stopped session, and import an archive from another installation."""
