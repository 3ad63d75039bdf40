"""The report of finished runs: one HTML file that needs nothing but a browser."""
