"""What tests and benchmarks share: servers, photographs, a hub on loopback, bad inputs by the thousand."""
