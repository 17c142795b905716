"""What a search found, for people: rankings, reliability, charts and the HTML page."""
