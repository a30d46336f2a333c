"""Comparative studies: data sets, run matrices, tables and plots."""
