"""What is learned from and how: objective, optimizers, precision, offloading."""
