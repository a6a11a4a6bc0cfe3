"""Properties of the Python shell that hold for any input, searched for counter-examples."""
