"""Clients of other services that programs often use with Hiveyard. No other package depends on them."""
