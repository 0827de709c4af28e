"""What an upload costs, and how much noise a budget buys."""
