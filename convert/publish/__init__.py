"""What a judged bundle leaves, and how it reaches its place."""
