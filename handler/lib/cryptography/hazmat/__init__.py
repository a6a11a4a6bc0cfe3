"""See `cryptography`, which is a stand-in."""
