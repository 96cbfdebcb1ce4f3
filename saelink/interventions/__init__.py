"""What happens in the model when something else stands in an activation's place."""
