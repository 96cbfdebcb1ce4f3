"""Every setting, typed, and what is checked of it."""
