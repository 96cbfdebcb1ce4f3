"""One HTML page of what a connector found, and the same from Python."""
