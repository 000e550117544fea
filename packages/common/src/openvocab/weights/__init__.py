"""Weights: state dicts read and written safely, official files fetched, small files shipped."""
