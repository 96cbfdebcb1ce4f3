"""Connectors and graphs for others: folders, tables, hubs, prompt graphs."""
