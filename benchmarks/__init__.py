"""Side-by-side measurements against other systems and against the limits that PruneSeal promises to keep."""
