"""The results of a search: rankings, the reliability of rewards, charts and the HTML page."""
