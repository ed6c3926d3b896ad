"""Models as files and as graphs: reading and writing them safely, and asking who makes and reads a tensor."""
