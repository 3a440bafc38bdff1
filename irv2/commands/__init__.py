"""Programs that belong to no single stage."""
