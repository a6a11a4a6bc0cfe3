"""Freezes with the engine, for a backup job or for a restore point.

attempts        one freeze with its calls, as a backup job makes it
freezing        chooses what to freeze, and prepares and runs the engine
lock            the lock shared with other extensions that freeze
leftovers       thaws what a killed run left frozen
"""
