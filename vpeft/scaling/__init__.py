"""What a whole suite costs on an accelerator that is not here: counted operations, a roofline, a simulation."""
