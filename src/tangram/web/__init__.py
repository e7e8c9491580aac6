"""The site: pages, manifest, docs, operator's routes, files, and the Quart application behind them."""
