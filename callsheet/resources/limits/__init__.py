"""Limits that hold over the whole fleet: requests and tokens in any minute, and calls under way."""
