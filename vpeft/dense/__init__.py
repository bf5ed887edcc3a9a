"""Networks beside a backbone and what belongs to dense prediction."""
