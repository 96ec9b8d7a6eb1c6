"""Write archives to sinks: objects that callers pass, and files that appear when they are whole."""
