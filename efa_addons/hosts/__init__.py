"""Adapters: one folder per host architecture. Hosts know the core; the core knows no host."""
