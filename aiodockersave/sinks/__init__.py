"""Write archives to callers' files and streams, and to files that get their name when they are complete."""
