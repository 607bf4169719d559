"""What `callsheet doctor` looks at."""
