"""Small networks, each with what pruning it must give."""
