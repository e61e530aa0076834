"""What people see of a diagnostic: its text, its pictures, its history, and how they reach files and loggers."""
