"""Reading files from outside: bounded, checked, and never executed."""
