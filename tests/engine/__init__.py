"""The compiled module and the layering, without root and without freezing anything."""
