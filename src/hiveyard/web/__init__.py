"""The page: everything that `hv` shows and does, in a browser, on a listener of its own.

It decides nothing: each act is a call of the engine that the API has, too. Every request is authenticated
(`authentication.py`); texts of agents are shown as text and never as markup.
"""
