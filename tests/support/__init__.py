"""What tests share: one federation, recorder, oracle and relay; import as ``support.NAME``."""
