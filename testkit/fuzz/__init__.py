"""Bad inputs by the thousand, and what must stay true meanwhile. `make fuzz` runs all, the tests beside it a part."""
