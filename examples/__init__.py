"""Example applications of Callsheet."""
