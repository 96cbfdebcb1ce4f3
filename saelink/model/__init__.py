"""The language model: where its weights come from, what is known of it, its hooks."""
