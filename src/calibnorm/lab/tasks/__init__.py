"""What is learned, one file a task; `task` is the seam that the loop and the experiments see it through."""
