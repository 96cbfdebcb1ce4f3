"""Tasks on many workers, by engines that others keep."""
