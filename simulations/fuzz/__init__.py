"""Random scenarios, each refused before it trains or run and held to independent oracles."""
