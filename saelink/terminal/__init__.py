"""Every table and card that is printed; nothing else prints."""
