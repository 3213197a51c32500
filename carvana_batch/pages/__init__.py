"""HTML pages that are complete in one file and need no network; what they show is made elsewhere."""
