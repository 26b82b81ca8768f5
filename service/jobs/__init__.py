"""Jobs: runs on a Ray cluster that somebody submitted, each in a folder that says all about it."""
