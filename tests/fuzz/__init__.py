"""Coverage-guided fuzzing of every parser of bytes from outside, by atheris where it installs."""
