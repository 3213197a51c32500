"""Looking at the masks of a finished run: a page with the doubtful ones first, on which they are judged."""
