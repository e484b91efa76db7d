"""What learns: rows, networks, training. It holds no key and knows neither encryption nor Flower."""
