"""Make an archive: by calls of a writer, from a plan, or by a function that writes; know no sources."""
