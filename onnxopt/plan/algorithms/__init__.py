"""Dense convolution by one of several algorithms: the steps of each, and the choice among them for a network."""
