"""The page people watch the paper trader on: static files of our own, and Plotly from its installed package."""
