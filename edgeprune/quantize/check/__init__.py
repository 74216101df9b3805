"""What is held against the graph: bad input, the runtimes' rules, what a compiler made of it, what each layer loses."""
