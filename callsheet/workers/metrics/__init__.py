"""What a worker tells Prometheus: `CALLSHEET_METRICS_PORT=9600`."""
