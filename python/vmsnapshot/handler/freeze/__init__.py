"""Freezes as a backup job or a restore point needs it, with the engine.

attempts        one freeze with its calls, as a backup job makes it
freezing        what to freeze, and when one may
lock            the lock that is shared with other extensions that freeze
leftovers       what a killed run left frozen
"""
