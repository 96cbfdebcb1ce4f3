"""What a fitted connector is worth: held-out figures, circuits, logic, verdicts, stability."""
