"""Every table and card that is printed; else only `cli/` prints, errors and the answers of small commands."""
