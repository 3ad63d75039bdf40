"""A classifier as a service over HTTP: `app.py` has the routes, `running.py` the server; docs/serve.md has the rest."""
