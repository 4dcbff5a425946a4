"""Measures mq beside its peers: `python -m bench --help`, bench/README.md."""
