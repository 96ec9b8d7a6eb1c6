"""The archive as it is made: by calls of a writer, out of a plan, or by a function that writes."""
