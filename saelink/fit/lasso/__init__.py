"""The lasso of many columns that share their Gram matrix, each with its certificate."""
