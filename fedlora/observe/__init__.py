"""Looking on while a run goes on: status, structured log, TensorBoard, Prometheus."""
