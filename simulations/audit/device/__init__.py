"""The audit of a device: nothing that leaves it may tell of a record before it is paid for."""
